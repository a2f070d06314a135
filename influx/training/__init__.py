"""The training engine: K models side by side, each with its own example weights and start; training one model is K = 1."""

from influx.training.base import Fit, Task, Training

__all__ = ["Fit", "Task", "Training"]
