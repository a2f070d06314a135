"""Which documents raise a bias of word vectors, is it less without them, and can it be undone?

A bias is the effect size of a word test (measurement=weat: a column a test). Documents are ranked by their influence on it; then, for each
test that is reported,

* models are trained without the documents that raise the effect most, without those that lower it most, and without as many at random,
  from the same start and in the same order;
* a few more steps are taken on the documents (`fine_tuning`), in settings that were chosen on a test that is not reported;
* the direction of the bias is taken out of the vectors (`influx.hard_debiasing`), alone and after those steps.

Protocol of the code that Silva et al. (AISTATS 2022) released for their experiment on biased text, with departures:

1. It scores only sentences that contain a word of the test; here all documents are scored.
2. It reports the best of 48 settings of the steps, chosen on the effect itself (chosen_on=reported); here settings are fixed on the
   held-out test.
3. It trains nothing again; sets of documents that are left out are compared with random ones here, because effect sizes of small corpora
   move by half a unit or more whichever documents are left out.

Cost: seeds x (training + estimate + (2 tests + random_sets) trainings + the steps of all settings).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from rich.console import Console

from influx import rules
from influx.errors import InfluxError, nearest
from influx.estimators import Estimator
from influx.estimators.external import External
from influx.experiment import Trained
from influx.hard_debiasing import HardDebiasing
from influx.instantiate import build
from influx.pipelines.estimate import estimate, scored
from influx.pipelines.session import Session
from influx.pipelines.tasks.base import Task, note_table, over_seeds, replicas, warn_of_unused
from influx.pipelines.tasks.documents import documents_table, documents_text
from influx.pipelines.tasks.fine_tuning import Setting, Tried, choose, grid
from influx.pipelines.tasks.interventions import BY_CHANCE, CHOSEN, LOWERING, RAISING, RIVAL, TRAINED, Bias, vectors_name, with_seed
from influx.report.debiasing import debiasing_lines, debiasing_verdict, save_debiasing
from influx.retraining import Retraining

log = logging.getLogger("influx")

HELD_OUT = "held_out"
HEADLINE = "raising_minus_random"
CHOSEN_HERE = tuple(
    f"retraining.{name}"
    for name in ("removed", "selection", "percentile", "index", "selection_seed", "fraction", "subsets", "groups", "group_size", "seeds")
)  # which sets are left out, and in how many seeds, are the task's own
ON_ITSELF = (
    "task.chosen_on=reported chooses the steps by the very effect that is reported, as the released code does: what is left of it is "
    "partly luck."
)


@dataclass(frozen=True)
class Debiasing(Task):
    """Writes documents.csv, documents.md, debiasing.csv, debiasing_seeds.csv, settings.csv, debiasing.png; the ordinary files of an
    estimate are the first seed's. Rows of debiasing.csv: `score` (what was done) x `statistic`, the test's name at the statistic's end:

    - `weat:<test>`: effect size; `change:<test>`: less that of the trained model; `size:<test>`: its magnitude;
    - `minus_random:<test>`: of a change, less the mean change without as many random documents; `spread:<test>`: the random sets'
      standard deviation within a seed; `predicted:<test>`: the sum of influences;
    - `loss:<test>`: the mean training loss that goes with it.

    Under the method's own name, means over the reported tests: `raising_minus_random`, `lowering_minus_random`; `size_minus_trained`,
    `size_minus_hard` and `size_minus_chance` of the fine-tuned model's |effect size|, less that of the trained model, of hard debiasing,
    and of the same steps on random documents; `loss_ratio`, its training loss over that of the trained model.

    Args:
        rival, seeds, held_out, share, random_sets, documents, steps, rates, modes, damage, chosen_on, ranked_on, top: as in
            conf/task/debiasing.yaml.
    """

    rival: HardDebiasing
    seeds: int = 5
    held_out: str = "career_held_out"
    share: float = 0.1
    random_sets: int = 5
    documents: Sequence[int] = (10, 100)
    steps: Sequence[int] = (10, 50)
    rates: Sequence[float] = (0.01,)
    modes: Sequence[str] = ("undo", "amplify", "both")
    damage: float = 0.05
    chosen_on: str = HELD_OUT
    ranked_on: str = "reported"
    top: int = 10

    def __post_init__(self) -> None:
        rules.check_fields("task", self)

    def check(self, session: Session, estimator: Estimator) -> None:
        """
        Raises:
            InfluxError: there are no word vectors or no word tests, the held-out test is not one of them or the only one, there are fewer
                documents than are asked for, or hard debiasing cannot find its direction.
        """
        data = session.experiment.data
        if not data.words or not data.test_names:
            raise InfluxError(
                "task=debiasing is about word vectors and tests of words: use objective=skip_gram model=skip_gram measurement=weat."
            )
        if self.held_out not in data.test_names:
            raise InfluxError(
                f"task.held_out={self.held_out} is none of the tests {', '.join(data.test_names)}.{nearest(self.held_out, data.test_names)}"
            )
        if len(data.test_names) < 2:
            raise InfluxError(f"there is no test to report beside task.held_out={self.held_out}: add one under measurement.tests.")
        if session.config["test_points"] != "all":
            raise InfluxError(f"task=debiasing reads out all tests: leave test_points={session.config['test_points']} out.")
        if self.seeds > 1 and isinstance(estimator, External):
            raise InfluxError("method=external has the scores of one model, and task.seeds > 1 trains others: set task.seeds=1.")
        self._check_counts(data.n_train)
        if self.chosen_on != HELD_OUT:
            session.folder.warn(ON_ITSELF)
        warn_of_unused("debiasing", session, CHOSEN_HERE)
        vectors_name(session.experiment)
        found = self.rival.check(data.words)
        if found < len(self.rival.definitional):
            log.info("hard debiasing: %d of %d definitional sets are in the vocabulary", found, len(self.rival.definitional))
        self._retraining(session).check("group", session.experiment, session.memory)

    def _check_counts(self, n: int) -> None:
        if self._count(n) == 0:
            raise InfluxError(f"task.share={self.share:g} of {n} documents is none: raise it.")
        most = max(self.documents)
        if 2 * most > n:
            raise InfluxError(f"task.documents={list(self.documents)} wants {most} on either side of {n} documents: ask for fewer.")

    def _count(self, n: int) -> int:
        return round(self.share * n)

    def _retraining(self, session: Session) -> Retraining:
        node = {**session.config["retraining"], "selection": "random", "index": None, "groups": 1}
        count = self._count(session.experiment.data.n_train)
        return with_seed(build({**node, "group_size": count}, Retraining, "retraining"))

    def run(self, session: Session, estimator: Estimator) -> float:
        """The headline is the change without the documents that raise the effect, less that without random ones, mean over reported tests
        and seeds."""
        rows: list[dict[str, Any]] = []
        tried: list[dict[str, Any]] = []
        for number, one in enumerate(replicas(session, self.seeds)):
            bias = self._bias(one, estimator, first=number == 0)
            about = {"seed": one.seed}
            with session.folder.stage("retrain" if number == 0 else f"retrain, seed {one.seed}"):
                count = self._count(len(bias.influence))
                found = [*bias.removals(self._retraining(one), count, self.random_sets)]
            with session.folder.stage("fine-tune" if number == 0 else f"fine-tune, seed {one.seed}"):
                chosen, listed = self._settings(bias)
                found += bias.changed(chosen, self.rival)
            tried += [{**about, **row} for row in listed]
            own = _summary(found, bias.reported)
            rows += [{**about, **row} for row in found]
            rows += [{**about, "score": session.choices["method"], "statistic": name, "value": value} for name, value in own.items()]
            log.info("seed %d: %s", one.seed, ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in own.items()))
        session.folder.csv("settings.csv", pd.DataFrame(tried))
        return self._finish(session, pd.DataFrame(rows))

    def _bias(self, session: Session, estimator: Estimator, *, first: bool) -> Bias:
        trained, influence = self._estimated(session, estimator, first=first)
        names = session.experiment.data.test_names
        reported = {name: column for column, name in enumerate(names) if name != self.held_out}
        held_out = names.index(self.held_out)
        bias = Bias(session, trained, influence, reported, held_out, held_out if self.ranked_on == HELD_OUT else None)
        if first:
            effects = dict(zip(names, bias.effects.tolist(), strict=True))
            table = documents_table(session.experiment.data, influence, self.top)
            session.folder.csv("documents.csv", table)
            session.folder.text("documents.md", documents_text(table, effects))
        return bias

    def _estimated(self, session: Session, estimator: Estimator, *, first: bool) -> tuple[Trained, Float[np.ndarray, "n_train n_tests"]]:
        if first:
            made = estimate(session, estimator)
            return made.trained, made.influence
        with session.folder.stage(f"estimate, seed {session.seed}"):
            trained = session.experiment.train(session.seed, session.store, checkpoints=session.config["checkpoints"])
            return trained, scored(session, estimator, trained).influence.cpu().numpy()

    def _settings(self, bias: Bias) -> tuple[dict[str, dict[str, Setting]], list[dict[str, Any]]]:
        """For each reported test the choice of all modes together (under `CHOSEN`), and of each; and the rows of settings.csv."""
        paths = grid(self.modes, self.documents, self.rates, self.steps)
        if self.chosen_on == HELD_OUT:
            once = self._choice(bias, self.held_out, bias.try_all(paths, bias.held_out))
            return dict.fromkeys(bias.reported, once[0]), once[1]
        each = {name: self._choice(bias, name, bias.try_all(paths, column)) for name, column in bias.reported.items()}
        return {name: chosen for name, (chosen, _) in each.items()}, [row for _, listed in each.values() for row in listed]

    def _choice(self, bias: Bias, test: str, tried: list[Tried]) -> tuple[dict[str, Setting], list[dict[str, Any]]]:
        parts = {CHOSEN: tried}
        if len(self.modes) > 1:
            parts |= {mode: [one for one in tried if one.setting.mode == mode] for mode in self.modes}
        chosen = {score: choose(part, bias.loss, self.damage).setting for score, part in parts.items()}
        listed = [
            {"test": test, **asdict(one.setting), "weat": one.effect, "loss": one.loss, "chosen": one.setting == chosen[CHOSEN]}
            for one in tried
        ]
        return chosen, listed

    def _finish(self, session: Session, rows: pd.DataFrame) -> float:
        folder, method, data = session.folder, session.choices["method"], session.experiment.data
        table = over_seeds(rows.to_dict("records"), ["score", "statistic"])  # type: ignore[arg-type]
        folder.csv("debiasing.csv", table)
        folder.csv("debiasing_seeds.csv", rows[["seed", "score", "statistic", "value"]])
        note_table(folder, "debiasing.csv", HEADLINE, "change without raising documents, less random ones")
        tests = [name for name in data.test_names if name != self.held_out]
        count, start = self._count(data.n_train), session.config["retraining"]["start"]
        where = self.held_out if self.chosen_on == HELD_OUT else "the reported test itself"
        about = (
            f"{data.n_train} documents, {count} left out (start={start}), {self.random_sets} random sets; settings of steps chosen on "
            f"{where}; {self.seeds} seed{'s' * (self.seeds > 1)}"
        )
        if session.config["pictures"]:
            title = f"{method} on {data.name}: what changes the bias of word vectors"
            save_debiasing(table, folder.path / "debiasing.png", tests=tests, title=title, about=about)
        screen = Console(width=130, file=io.StringIO())
        screen.print(debiasing_lines(table, tests, about))
        log.info("%s", screen.file.getvalue().rstrip())  # type: ignore[attr-defined]
        log.info("%s", debiasing_verdict(table, method))
        return float(table.set_index(["score", "statistic"]).value[method, HEADLINE])


def _summary(rows: Sequence[dict[str, Any]], reported: Iterable[str]) -> dict[str, float]:
    """Means over the reported tests, under the method's own name."""
    cells = {(row["score"], row["statistic"]): row["value"] for row in rows}

    def mean(score: str, kind: str) -> float:
        return float(np.mean([cells[score, f"{kind}:{name}"] for name in reported]))

    return {
        HEADLINE: mean(RAISING, "minus_random"),
        "lowering_minus_random": mean(LOWERING, "minus_random"),
        "size_minus_trained": mean(CHOSEN, "size") - mean(TRAINED, "size"),
        "size_minus_hard": mean(CHOSEN, "size") - mean(RIVAL, "size"),
        "size_minus_chance": mean(CHOSEN, "size") - mean(BY_CHANCE, "size"),
        "loss_ratio": mean(CHOSEN, "loss") / mean(TRAINED, "loss"),
    }
