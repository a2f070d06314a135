"""Retraining: the response that leave-one-out asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from influx.problem import Problem
from influx.responses.base import Moved, Response
from influx.training import Task, Training


@dataclass(frozen=True)
class Retrained(Response):
    """The training itself on the new weights; cold from a fresh initialisation, warm from θ_s: the task's start says."""

    name: ClassVar[str] = "retrain"
    begins: ClassVar[str | None] = None

    def move(self, task: Task, training: Training, problem: Problem) -> Moved:
        fit = training.fit(task)
        return Moved(fit.params, fit.buffers)
