"""How long a stack of models will take, from a trial of it."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

from influx import frozen, layered
from influx.errors import AccuracyWarning
from influx.experiment import Trained
from influx.removals import Removals
from influx.responses.anchored import DENSE, Anchored
from influx.responses.bregman import Bregman
from influx.shards import Shard

TRIAL_MODELS = 16  # of a trial that cannot be shortened in any other way
TRIAL_ITERATIONS = 2  # of a response that is found step by step
FEW, MANY = 10, 100  # steps that it takes in full: of a PBRF with a dense factor, and of any other


def seconds_per_model(shard: Shard, base: Trained) -> float:
    """Seconds a model of the shard."""
    return _of_training(shard, base) if shard.recipe.response.vectors is None else _of_response(shard)


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


def _of_response(shard: Shard) -> float:
    """From a few steps of a few models; what all models of a stack share is done once."""
    response, share = shard.recipe.response, 1.0
    if isinstance(response, Anchored):
        size = sum(value.numel() for value in shard.base.params.values())
        steps = FEW if isinstance(response, Bregman) and size <= DENSE else MANY
        response, share = replace(response, max_iterations=TRIAL_ITERATIONS), TRIAL_ITERATIONS / steps
    few = TRIAL_MODELS if layered.fits(shard.experiment.module(0)) else 2
    short = _first(replace(shard, recipe=replace(shard.recipe, response=response)), few)
    begun = time.perf_counter()
    with _unsaid():
        shared = short.move()[1].shared_seconds
    each = (time.perf_counter() - begun - shared) / (len(short.part) + 1)
    return each / share + shared / (len(shard.part) + 1)


def _first(shard: Shard, count: int) -> Shard:
    return replace(shard, part=Removals(shard.part.sets[:count], shard.part.unit))


def _unsaid() -> warnings.catch_warnings:
    """Accuracy warnings are for the work itself to say."""
    return warnings.catch_warnings(action="ignore", category=AccuracyWarning)
