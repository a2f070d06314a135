"""One figure a study: drawn from its results, a long table with a row an arm x grid point x seed x statistic."""

from influx.report.figures.base import Figure

__all__ = ["Figure"]
