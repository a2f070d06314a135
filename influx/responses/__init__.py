"""Responses to leaving examples out: one a file."""

from influx.responses.base import Moved, Response, train_outputs

__all__ = ["Moved", "Response", "train_outputs"]
