"""What can be done about a bias of a trained model: train without documents, take steps on documents, take a direction out of its vectors.

Each is measured on the word lists that are reported; what had to be chosen was chosen on the list that is held out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from influx import stacking
from influx.errors import InfluxError
from influx.experiment import Experiment, Trained
from influx.hard_debiasing import HardDebiasing
from influx.pipelines import test_points
from influx.pipelines.session import Session
from influx.pipelines.tasks.fine_tuning import Setting, Tried, path, sides
from influx.problem import Problem
from influx.removals import Removals
from influx.retraining import Retraining
from influx.seeding import numpy_generator

TRAINED, RAISING, LOWERING, RANDOM = "trained", "without raising", "without lowering", "without random"
CHOSEN, RIVAL, COMBINED, BY_CHANCE = "fine-tuned", "hard debiasing", "fine-tuned, then hard debiasing", "fine-tuned on random"

Row = dict[str, Any]


@dataclass(frozen=True)
class Bias:
    """A trained model and what is estimated of it: `influence[i, t]` of document i on word test t. `reported` are the tests (name ->
    column), `held_out` the column that settings are chosen on, `ranked_on` null, or the column whose documents are taken for all tests."""

    session: Session
    trained: Trained
    influence: Float[np.ndarray, "n_train n_tests"]
    reported: Mapping[str, int]
    held_out: int
    ranked_on: int | None

    @property
    def experiment(self) -> Experiment:
        return self.session.experiment

    @cached_property
    def problem(self) -> Problem:
        return self.experiment.problem(self.trained, self.session.seed, self.session.memory)

    @cached_property
    def effects(self) -> Float[np.ndarray, " n_tests"]:
        """Of the trained model."""
        return self.measured(self.trained.params)

    @cached_property
    def loss(self) -> float:
        return self.mean_loss(self.problem.theta)

    def measured(self, params: Mapping[str, Tensor]) -> Float[np.ndarray, " n_tests"]:
        """Every test's effect size for other parameters."""
        stacked, buffers = stacking.stack(dict(params), 1), stacking.stack(self.trained.buffers, 1)
        experiment, seed = self.experiment, self.session.seed
        return experiment.measure(seed, experiment.module(0), stacked, buffers)[0].double().cpu().numpy()

    def mean_loss(self, theta: Float[Tensor, " p"]) -> float:
        """The mean training loss, without the regulariser."""
        problem = self.problem.at(self.problem.unflatten(theta))
        return float(test_points.losses(problem, problem.train).mean())

    # ------------------------------------------------------------------------------------------------- trained without

    def extremes(self, count: int) -> dict[tuple[str, str], Int[np.ndarray, " rows"]]:
        """By (score, test) the `count` documents that models are trained without."""
        made: dict[tuple[str, str], Int[np.ndarray, " rows"]] = {}
        for name, column in self.reported.items():
            order = np.argsort(self.influence[:, column if self.ranked_on is None else self.ranked_on], kind="stable")
            made[RAISING, name] = np.sort(order[:count])  # without them the effect is predicted to fall most
            made[LOWERING, name] = np.sort(order[::-1][:count])
        return made

    def drawn(self, count: int, sets: int) -> list[Int[np.ndarray, " rows"]]:
        """So many sets of `count` documents at random, each drawn on its own."""
        rng = numpy_generator(self.session.seed, "documents at random")
        return [np.sort(rng.choice(len(self.influence), count, replace=False)) for _ in range(sets)]

    def removals(self, retraining: Retraining, count: int, random_sets: int) -> Iterator[Row]:
        """Rows of the three kinds of sets: `weat`, `change` (from the model with everything, retrained in the same way), `predicted`;
        `minus_random` of the chosen ones; of the random ones the mean, and their standard deviation as `spread`."""
        drawn = self.drawn(count, random_sets)
        by_chance, full = self._without(retraining, drawn)  # a run of its own: other methods on the same model find it in the store
        forecast = np.stack([self.influence[rows].sum(0) for rows in drawn])
        for name, column in self.reported.items():
            moved = by_chance[:, column]
            found = {"weat": full[column] + moved.mean(), "change": moved.mean(), "predicted": forecast[:, column].mean()}
            yield from _rows(RANDOM, name, found | {"spread": moved.std(ddof=1)})
        extremes = self.extremes(count)
        changes, full = self._without(retraining, list(extremes.values()))
        for (score, name), rows, change in zip(extremes, extremes.values(), changes, strict=True):
            column = self.reported[name]
            moved = change[column]
            found = {"weat": full[column] + moved, "change": moved, "predicted": self.influence[rows, column].sum()}
            yield from _rows(score, name, found | {"minus_random": moved - by_chance[:, column].mean()})

    def _without(
        self, retraining: Retraining, sets: list[Int[np.ndarray, " rows"]]
    ) -> tuple[Float[np.ndarray, "n_sets n_tests"], Float[np.ndarray, " n_tests"]]:
        """How the effects change without each set, and what they are with everything."""
        session = self.session
        truth = retraining.run(self.experiment, self.trained, Removals(tuple(sets), "removed group"), session.seed, session.store)
        return truth.change[..., 0], truth.full[:, 0]

    # ------------------------------------------------------------------------------------------------------- fine-tuned

    def try_all(self, paths: Sequence[Sequence[Setting]], column: int) -> list[Tried]:
        """What each setting does to the effect of one test, and to the training loss."""
        made = []
        for settings in paths:
            for setting, theta in path(self.problem, settings, *self._sides(column)):
                effect = self.measured(self.problem.unflatten(theta))[column]
                made.append(Tried(setting, float(effect), self.mean_loss(theta)))
        return made

    def _sides(self, column: int) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
        ranked = column if self.ranked_on is None else self.ranked_on
        return sides(self.influence[:, ranked], float(self.effects[ranked]))

    def changed(self, chosen: Mapping[str, Mapping[str, Setting]], rival: HardDebiasing) -> Iterator[Row]:
        """Rows of settings that were `chosen` (test -> score -> setting), of the setting of `CHOSEN` on documents at random, of the rival,
        and of the rival after `CHOSEN`: `weat`, `change`, `size` = |weat|, `loss`; of the trained model as well."""
        begun, vectors = self.problem.theta, vectors_name(self.experiment)
        drawn = numpy_generator(self.session.seed, "steps on documents at random").permutation(len(self.influence))
        for name, column in self.reported.items():
            thetas = {TRAINED: begun, RIVAL: self._without_direction(begun, rival, vectors)}
            for score, setting in chosen[name].items():
                ((_, thetas[score]),) = path(self.problem, [setting], *self._sides(column))
            ((_, thetas[BY_CHANCE]),) = path(self.problem, [chosen[name][CHOSEN]], drawn, drawn[::-1])
            thetas[COMBINED] = self._without_direction(thetas[CHOSEN], rival, vectors)
            for score, theta in thetas.items():
                effect = float(self.measured(self.problem.unflatten(theta))[column])
                found = {"weat": effect, "size": abs(effect), "loss": self.mean_loss(theta)}
                if score != TRAINED:
                    found["change"] = effect - float(self.effects[column])
                yield from _rows(score, name, found)

    def _without_direction(self, theta: Float[Tensor, " p"], rival: HardDebiasing, vectors: str) -> Float[Tensor, " p"]:
        """1. The paper's vectors have length 1; here each gets its own length back, as the training loss sees lengths (effect sizes see
        directions alone)."""
        params = self.problem.unflatten(theta)
        before = params[vectors]
        after = rival.debiased(before.double(), self.experiment.data.words) * before.double().norm(dim=1, keepdim=True)
        return torch.cat([(after.to(value) if name == vectors else value).reshape(-1) for name, value in params.items()])


def vectors_name(experiment: Experiment) -> str:
    """The parameter whose rows the model gives for numbers of words.

    Raises:
        InfluxError: there is none.
    """
    module, words = experiment.module(0), len(experiment.data.words)
    some = torch.arange(min(words, 5), device=experiment.data.train_inputs.device)
    candidates = {name: value.detach() for name, value in module.named_parameters() if value.dim() == 2 and len(value) == words}
    try:
        with torch.no_grad():
            given = module(some.unsqueeze(1))
    except (RuntimeError, ValueError, IndexError):
        given = some.new_empty(0)
    for name, value in candidates.items():
        if given.shape == value[some].shape and torch.equal(given, value[some]):
            return name
    raise InfluxError(
        f"{type(experiment.model).__name__} has no parameter of one row a word that it gives for a word's number, and hard debiasing "
        "changes word vectors: use model=skip_gram."
    )


def _rows(score: str, test: str, found: Mapping[str, float]) -> Iterator[Row]:
    for kind, value in found.items():
        yield {"score": score, "statistic": f"{kind}:{test}", "value": float(value)}


def with_seed(retraining: Retraining) -> Retraining:
    """One seed, the model's own; from the optimum, changes are against the model retrained with everything."""
    return replace(retraining, seeds=1, subtract_drift=retraining.start == "warm")
