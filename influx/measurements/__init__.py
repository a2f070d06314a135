"""Measurements; `influx.measurements.base` says what one is, and fixes sign and unit of every influence."""

from influx.measurements.base import Measurement
from influx.measurements.loss import LogProbability, Loss, MeanLoss
from influx.measurements.margin import Margin

__all__ = ["LogProbability", "Loss", "Margin", "MeanLoss", "Measurement"]
