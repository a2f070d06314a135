"""Estimators: one method a file, each mapping a fitted problem to `influence[n_train, n_test]`."""

from influx.estimators.base import Estimate, Estimator

__all__ = ["Estimate", "Estimator"]
