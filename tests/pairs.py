"""Every objective of conf/objective and measurement of conf/measurement as a tiny experiment, globbed so that none can be forgotten."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from methods import CONF
from omegaconf import OmegaConf
from problems import data_of

from influx.data import Data
from influx.errors import InfluxError
from influx.experiment import Experiment
from influx.instantiate import build
from influx.measurements import Measurement
from influx.measurements.base import Posing
from influx.models import Model
from influx.models.dec import Dec
from influx.models.mlp import Mlp
from influx.models.skip_gram import SkipGramVectors
from influx.models.vade import Vade
from influx.models.views import Views
from influx.objectives import Objective
from influx.objectives.base import Unlabelled
from influx.pipelines.session import check_targets
from influx.training.first_order import Sgd

OBJECTIVES = sorted(path.stem for path in (CONF / "objective").glob("*.yaml"))
MEASUREMENTS = sorted(path.stem for path in (CONF / "measurement").glob("*.yaml"))
N_TRAIN, N_TEST = 18, 3

SHORT = Sgd(lr=0.05, epochs=4, batch_size=None, momentum=0.5, weight_decay=0.05)
MODELS: dict[str, Model] = {  # where a model of its own belongs to the objective
    "dec": Dec(width=3, embedding=2),
    "contrastive": Views(Mlp(width=3)),
    "skip_gram": SkipGramVectors(width=2),
    "vade": Vade(width=3, embedding=2, pairs=1, pretraining=2),
    "vae": Vade(width=3, embedding=2, pairs=1, pretraining=2),
}
NEEDS_ITS_OWN = ("contrastive", "skip_gram")  # embeddings of views and of words are no outputs of an MLP
SMALLER: dict[str, dict[str, Any]] = {  # as little as there is in the tiny data
    "contrastive": {"embedding": 2, "negatives": 6},
    "skip_gram": {"window": 1, "negatives": 2, "min_count": 1},
    "vade": {"likelihood": "gaussian", "clusters": 3},
    "vae": {"likelihood": "gaussian"},
}


@cache
def blobs(numbers: bool = False) -> Data:
    """Three overlapping groups in three dimensions, in the order 0 1 2 0 1 2; `numbers` to predict in place of their names."""
    rng = np.random.default_rng(3)
    total = N_TRAIN + N_TEST
    labels = np.arange(total) % 3
    inputs = np.eye(3)[labels] * 1.5 + 0.6 * rng.normal(size=(total, 3))
    targets = inputs.sum(1) + rng.normal(size=total) if numbers else labels
    return data_of(inputs, targets, N_TRAIN, None if numbers else 3)


@cache
def sentences() -> Data:
    """Two words of each of WEAT's lists, all of them in the second half of the training part."""
    rng = np.random.default_rng(5)
    words = [word for lists in chosen("measurement", "weat")["tests"].values() for each in lists.values() for word in each[:2]]
    texts = [" ".join(rng.choice(words, 3)) for _ in range(N_TEST + N_TRAIN // 2)]
    texts += [" ".join(part) for part in np.array_split(words, N_TRAIN // 2)]
    places, labels = np.arange(N_TRAIN), np.arange(N_TRAIN + N_TEST) % 3
    made = data_of(np.zeros((N_TRAIN + N_TEST, 1)), labels, N_TRAIN, 3)
    return replace(made, train_index=places, test_index=np.arange(N_TEST), texts=tuple(texts[N_TEST:]), test_texts=tuple(texts[:N_TEST]))


@cache
def chosen(group: str, name: str) -> dict[str, Any]:
    """The composed settings of one choice."""
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("estimate", overrides=[f"{group}={name}"])
    return OmegaConf.to_container(config[group])


def paired(objective: str, measurement: str, **changes: Any) -> Experiment:
    """What a session makes of them, or its refusal; `changes` replace the experiment's parts."""
    aim = build({**chosen("objective", objective), **SMALLER.get(objective, {})}, Objective, "objective")
    asked = build(chosen("measurement", measurement), Measurement, "measurement")
    data = sentences() if objective == "skip_gram" else blobs(numbers=objective == "squared_error")
    data = aim.prepare(data) if isinstance(aim, Unlabelled) else data
    data = asked.pose(data) if isinstance(asked, Posing) else data
    made = Experiment(data, MODELS.get(objective, Mlp(width=3)), SHORT, aim, asked)
    made = replace(made, **changes)
    check_targets(made, objective)
    return made


def refusal(objective: str, measurement: str) -> str | None:
    """What is said of a pair that does not fit, before anything is trained."""
    try:
        paired(objective, measurement)
    except InfluxError as error:
        return str(error)
    return None


@cache
def fitting() -> tuple[tuple[str, str], ...]:
    """All pairs that fit."""
    return tuple((o, m) for o in OBJECTIVES for m in MEASUREMENTS if refusal(o, m) is None)
