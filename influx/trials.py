"""How long a stack of models will take, from a trial of it."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

from influx import frozen
from influx.errors import AccuracyWarning
from influx.experiment import Trained
from influx.removals import Removals
from influx.responses.anchored import Anchored
from influx.shards import Shard

TRIAL_MODELS = 16  # of a trial that cannot be shortened in any other way
TRIAL_ITERATIONS, EXPECTED_ITERATIONS = 2, 10  # of a response that is found step by step: in its trial, and in full
TRIAL_SECONDS = 1.0  # about the most for the second trial of a response


def seconds_per_model(shard: Shard, base: Trained) -> float:
    """Seconds a model of the shard."""
    if shard.recipe.response.vectors is None:
        return _of_training(shard, base)
    response, share = shard.recipe.response, 1.0
    if isinstance(response, Anchored):
        response, share = replace(response, max_iterations=TRIAL_ITERATIONS), TRIAL_ITERATIONS / EXPECTED_ITERATIONS
    short = replace(shard, recipe=replace(shard.recipe, response=response))
    alone = _seconds(_first(short, 1))
    few = min(len(shard.part), max(2, min(TRIAL_MODELS, round(TRIAL_SECONDS / max(alone, 1e-3)))))
    each = max(0.0, _seconds(_first(short, few)) - alone) / max(1, few - 1)  # what all models share, a factorisation, is not in it
    return each / share + max(0.0, alone - each) / (len(shard.part) + 1)


def _of_training(shard: Shard, base: Trained) -> float:
    """From a short training."""
    task = frozen.narrowed(shard.task())
    moving = sum(value[0].numel() for value in task.params.values()) / sum(value.numel() for value in base.params.values())
    short, share = shard.training.trial(len(base.history), moving * base.seconds, task.models)
    if share == 1.0:
        task = frozen.narrowed(_first(shard, TRIAL_MODELS).task())
    begun = time.perf_counter()
    with _unsaid():
        short.fit(task)
    return (time.perf_counter() - begun) / share / task.models


def _first(shard: Shard, count: int) -> Shard:
    return replace(shard, part=Removals(shard.part.sets[:count], shard.part.unit))


def _seconds(shard: Shard) -> float:
    begun = time.perf_counter()
    with _unsaid():
        shard.move()
    return time.perf_counter() - begun


def _unsaid() -> warnings.catch_warnings:
    """Accuracy warnings are for the work itself to say."""
    return warnings.catch_warnings(action="ignore", category=AccuracyWarning)
