"""What an estimate will take on this machine, from what it counts and two measurements of some milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from influx.cost import Cost
from influx.experiment import Trained
from influx.problem import Problem
from influx.stacking import is_layered

STACKED = 20  # trainings of a plain chain side by side that take as long as one alone, or more
TRIED = 32  # rows whose gradients are timed
SIDE = 256  # of the matrices whose product is timed


def forecast(problem: Problem, cost: Cost, trained: Trained) -> float:
    """Seconds, to within a small factor: one row's gradient and one matrix product are timed, a training took what it took."""
    few = problem.train.take(slice(0, TRIED))
    each = _seconds(lambda: problem.loss_gradients(few)) / len(few)
    matrix = torch.ones(SIDE, SIDE, dtype=problem.theta.dtype, device=problem.theta.device)
    rate = 2.0 * SIDE**3 / _seconds(lambda: matrix @ matrix)
    alone = cost.trainings / (min(cost.trainings, STACKED) if cost.trainings > 1 and is_layered(problem.module) else 1)
    return cost.gradients * each + cost.flops / rate + alone * trained.seconds


def said(cost: Cost) -> str:
    """The counts in words."""
    parts = [
        f"{cost.trainings:g} trainings" if cost.trainings else "",
        f"{cost.gradients:,.0f} gradients" if cost.gradients else "",
        f"{cost.flops:.1e} operations" if cost.flops else "",
    ]
    return ", ".join(part for part in parts if part) or "next to nothing"


def _seconds(work: Callable[[], object]) -> float:
    """The faster of two runs; the device's queue is waited for."""
    taken = []
    for _ in range(2):
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return min(taken)
