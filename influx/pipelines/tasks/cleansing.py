"""Cleaning data: remove what influence calls most harmful, train again on the rest, look at the test accuracy.

Rules for what goes first, each on the same trained model: the method (most negative mean influence on the read-out part first), the loss
(highest first), a random order, the oracle (wrong labels first, both groups in random order), and, on request, the method's opposite.

Protocol of the code that Chen et al. (HYDRA, AAAI 2021) released: 80 % of the labels wrong, 80 % of the examples removed, five repeats.
1. It reads contributions out on the test loss and reports the accuracy on the same points (readout=test); a part of the test set of its own
   is the default here.
2. Its scripts do not pass the wrong labels on, so that what is kept is trained on with its true labels (labels=clean).
3. Its repeats go on from one another's model (restart=continued).

Cost: seeds x (training + estimate + repeats x (1 + shares x rules) trainings of what is kept). A killed run goes on from the store.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from rich.console import Console
from torch import Tensor

from influx import rules
from influx.datasets import Dataset
from influx.errors import InfluxError
from influx.estimators import Estimator
from influx.experiment import Experiment, Trained
from influx.instantiate import build
from influx.pipelines import test_points
from influx.pipelines.estimate import estimate, scored
from influx.pipelines.session import Session, check_batches
from influx.pipelines.tasks.base import Task, check_session, note_table, over_seeds, replicas
from influx.pipelines.tasks.retrained import fresh_seeds, on_rows, trainings
from influx.pipelines.tasks.suspicion import Suspicion, baselines, by_mean
from influx.progress import progress
from influx.report.cleansing import cleansing_lines, cleansing_verdict, save_cleansing
from influx.seeding import numpy_generator

log = logging.getLogger("influx")

ALL, BEST, ORACLE, RANDOM = "all", "best", "oracle", "random"  # rules that are not scores
ON_THE_TEST_SET = (
    "task.readout=test chooses what to remove by the very points that the accuracy is reported on, as the released code does: "
    "the gain is partly fitted to them."
)

Order = Int[np.ndarray, " n_train"]  # rows, the first to be removed first


@dataclass(frozen=True)
class Cleansing(Task):
    """Writes cleansing.csv, cleansing_seeds.csv, curve.csv, cleansing.png; the ordinary files of an estimate are the first seed's, on the
    read-out part. Rows of the tables: `score` (the rule) x `statistic`, with the share removed at the end of its name:

    - `accuracy_at_<share>`: test accuracy on the reported part, mean over repeats; of the rule `all` at 0;
    - `minus_random_at_<share>`, `minus_all_at_<share>`: the same seed's difference to removing at random, and to removing nothing;
    - `wrong_at_<share>`: share of wrong labels among what is kept; not with labels=clean, which mends them.

    Args:
        seeds, removed, repeats, readout, validation, labels, restart, reverse: as in conf/task/cleansing.yaml.
    """

    seeds: int = 5
    removed: Sequence[float] = (0.1, 0.2, 0.4)
    repeats: int = 3
    readout: str = "validation"
    validation: float = 0.5
    labels: str = "noisy"
    restart: str = "fresh"
    reverse: bool = False

    def __post_init__(self) -> None:
        rules.check_fields("task", self)

    def check(self, session: Session, estimator: Estimator) -> None:
        """
        Raises:
            InfluxError: a part of the test set, or what is to be kept, would be empty or cannot be trained on.
        """
        check_session("cleansing", session, estimator, self.seeds)
        experiment = session.experiment
        n = experiment.data.n_train
        counts = [self._count(share, n) for share in self.removed]
        if sorted(set(counts)) != counts:
            raise InfluxError(
                f"task.removed={list(self.removed)} removes {', '.join(map(str, counts))} of {n}: list shares that ascend, and differ "
                "by an example at least; the last is the headline."
            )
        for share in self.removed:
            if self._count(share, n) in (0, n):
                raise InfluxError(
                    f"task.removed={share:g} of {n} training examples removes {self._count(share, n)} of them: choose another."
                )
            kept = on_rows(experiment, np.arange(n - self._count(share, n)))
            check_batches(kept, kept.module(0))
        if min(len(part) for part in self._parts(session)) == 0:
            raise InfluxError(
                f"task.validation={self.validation:g} of {experiment.data.n_test} test examples leaves a part empty: "
                "raise dataset.test_size."
            )
        if self.readout == "test":
            session.folder.warn(ON_THE_TEST_SET)
        if self.labels == "clean" and not experiment.data.wrong_labels.any():
            session.folder.warn("task.labels=clean changes nothing: dataset.label_noise=0 leaves every label as it is.")
        if self.restart == "continued" and self.repeats == 1:
            session.folder.warn("task.restart=continued changes nothing with task.repeats=1.")

    def run(self, session: Session, estimator: Estimator) -> float:
        """The headline is the accuracy under the method at the last share of `removed`, mean over seeds."""
        rows: list[dict[str, Any]] = []
        for number, one in enumerate(replicas(session, self.seeds)):
            orders = self._orders(one, estimator, first=number == 0)
            with session.folder.stage("retrain" if number == 0 else f"retrain, seed {one.seed}"):
                rows += self._rows(one, orders)
        return self._finish(session, pd.DataFrame(rows))

    @staticmethod
    def _count(share: float, n: int) -> int:
        return round(share * n)

    def _parts(self, session: Session) -> tuple[Int[np.ndarray, " read"], Int[np.ndarray, " reported"]]:
        """Rows of the test set that influence is read out on, and those that accuracy is reported on: one draw for all seeds."""
        n, split = session.experiment.data.n_test, session.config["dataset"].get("split_seed", 0)
        drawn = numpy_generator(split, "validation part").permutation(n)
        validation, reported = np.split(drawn, [round(self.validation * n)])
        return np.sort(reported if self.readout == "test" else validation), np.sort(reported)

    def _orders(self, session: Session, estimator: Estimator, *, first: bool) -> dict[str, Order]:
        """For each rule the order in which it removes: the method's first."""
        read, reported = self._parts(session)
        reading = replace(session, experiment=session.experiment.on_tests(read))
        folder, method = session.folder, session.choices["method"]
        if first:
            made = estimate(reading, estimator, session.experiment.on_tests(reported))
            trained, influence = made.trained, made.influence
        else:
            with folder.stage(f"estimate, seed {session.seed}"):
                trained = session.experiment.train(session.seed, session.store, checkpoints=session.config["checkpoints"])
                influence = scored(reading, estimator, trained).influence.cpu().numpy()
        own = removal_order(by_mean(influence, estimator, session.experiment.measurement))
        made_orders = {method: own}
        if self.reverse:
            made_orders[BEST] = own[::-1]
        return made_orders | {name: order for name, order in _others(reading, trained).items() if name != method}

    def _rows(self, session: Session, orders: dict[str, Order]) -> Iterator[dict[str, Any]]:
        """Statistics of one seed."""
        _, reported = self._parts(session)
        experiment = session.experiment.on_tests(reported)
        wrong, n = experiment.data.wrong_labels, experiment.data.n_train
        about = {"seed": session.seed, "noise_seed": session.config["dataset"].get("noise_seed", 0)}
        kept = {(ALL, 0.0): np.arange(n)}
        kept |= {(rule, share): np.sort(order[self._count(share, n) :]) for rule, order in orders.items() for share in self.removed}
        reached = self._reached(session, experiment, kept)
        for (rule, share), accuracy in reached.items():
            found = {"accuracy": accuracy}
            if rule != ALL:
                found["minus_all"] = accuracy - reached[ALL, 0.0]
            if rule not in (ALL, RANDOM):
                found["minus_random"] = accuracy - reached[RANDOM, share]
            if wrong.any() and self.labels == "noisy":
                found["wrong"] = float(wrong[kept[rule, share]].mean())
            for name, value in found.items():
                yield {**about, "score": rule, "statistic": f"{name}_at_{share:g}", "removed": share, "kind": name, "value": value}

    def _reached(
        self, session: Session, experiment: Experiment, kept: dict[tuple[str, float], np.ndarray]
    ) -> dict[tuple[str, float], float]:
        """Mean test accuracy over repeats of training on each set of rows."""
        targets = self._targets(session)
        seeds = fresh_seeds(session.seed, self.repeats)
        log.info("training %d models again on what is kept, seed %d", len(kept) * self.repeats, session.seed)
        made = {}
        for place in progress(list(kept), "rules and shares"):
            part = on_rows(experiment, kept[place], targets)
            found = trainings(part, seeds, session.store, continued=self.restart == "continued")
            made[place] = float(np.mean([test_points.accuracy(part, trained, session.seed) for trained in found]))
        return made

    def _targets(self, session: Session) -> Tensor | None:
        """The true labels where they are asked for."""
        if self.labels == "noisy":
            return None
        own = {**session.config["dataset"], "label_noise": 0.0}
        return build(own, Dataset, "dataset").load().train_targets.to(session.experiment.data.train_targets.device)

    def _finish(self, session: Session, rows: pd.DataFrame) -> float:
        folder, method, data = session.folder, session.choices["method"], session.experiment.data
        table = over_seeds(rows.to_dict("records"), ["score", "statistic", "removed", "kind"])  # type: ignore[arg-type]
        last = self.removed[-1]
        folder.csv("cleansing.csv", table.drop(columns=["removed", "kind"]))
        folder.csv("cleansing_seeds.csv", rows.drop(columns=["removed", "kind"]))
        lines = table[table["kind"] == "accuracy"].rename(columns={"value": "accuracy"})
        folder.csv("curve.csv", lines[["score", "removed", "accuracy", "ci_low", "ci_high", "n_seeds"]])
        note_table(folder, "cleansing.csv", f"accuracy_at_{last:g}", f"test accuracy after removing {last:.0%}")
        wrong = data.wrong_labels.sum()
        about = (
            f"{data.n_train} training examples, {wrong} labels wrong; {self.seeds} seed{'s' * (self.seeds > 1)} of "
            f"{self.repeats} trainings; accuracy on {len(self._parts(session)[1])} test examples"
        )
        if session.config["pictures"]:
            title = f"{method} on {data.name}, {type(session.experiment.model).__name__.lower()}: cleaning the training set"
            save_cleansing(table, folder.path / "cleansing.png", method=method, share=wrong / data.n_train, title=title, about=about)
        screen = Console(width=130, file=io.StringIO())
        screen.print(cleansing_lines(table, about))
        log.info("%s", screen.file.getvalue().rstrip())  # type: ignore[attr-defined]
        log.info("%s", cleansing_verdict(table, method, last))
        return float(table.set_index(["score", "statistic"]).value[method, f"accuracy_at_{last:g}"])


def removal_order(suspicion: Suspicion) -> Order:
    """The most suspicious first; of equals the one that stands first in the data."""
    return np.argsort(-suspicion, kind="stable")


def _others(session: Session, trained: Trained) -> dict[str, Order]:
    data, n = session.experiment.data, session.experiment.data.n_train
    drawn = numpy_generator(session.seed, "removal at random").permutation(n)
    wrong = data.wrong_labels
    orders = {"loss": removal_order(baselines(session, trained, ("loss",))["loss"]), RANDOM: drawn}
    if wrong.any():
        orders[ORACLE] = drawn[np.argsort(~wrong[drawn], kind="stable")]
    return orders
