"""What influence estimates are used for: each task is a file, and any estimator can enter."""

from influx.pipelines.tasks.base import Task

__all__ = ["Task"]
