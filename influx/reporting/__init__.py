"""`influx report`: finished runs of any folders in one table, one figure and one HTML page. Nothing is trained."""

from influx.reporting.joining import command

__all__ = ["command"]
