"""Training objectives; `influx.objectives.base` says what one is."""

from influx.objectives.base import Objective
from influx.objectives.supervised import CrossEntropy, SquaredError, Supervised, log_odds, weighted_slope

__all__ = ["CrossEntropy", "Objective", "SquaredError", "Supervised", "log_odds", "weighted_slope"]
