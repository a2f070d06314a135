"""Data sets: one a file, each stating its exact sizes and source; `Dataset.read` is all that a new one has to define."""

from influx.datasets.base import Data, Dataset, Source

__all__ = ["Data", "Dataset", "Source"]
