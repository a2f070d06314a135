"""Solvers of `A X = B` for a damped curvature A and many right-hand sides at once."""

from influx.solvers.base import Solution, Solver

__all__ = ["Solution", "Solver"]
