"""Published studies as data: a grid of ordinary validate jobs, what is computed from them, and claims with verdicts."""

from influx.studies.study import Study

__all__ = ["Study"]
