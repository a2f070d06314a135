"""Threads and workers through `Retraining.run`, and whole `influx validate` commands, against loops over models.

By itself, with THREADS WORKERS TYPE [--quick], this file measures one row of the workers' table.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from loops import SEED, warm_up, with_loader, with_slices
from measure import header, in_turn, largest_child_mebibytes, peak_mebibytes, ratio, row, seconds
from side_by_side import DTYPES, NOWHERE, Case, sgd_cases

from influx.experiment import Experiment
from influx.removals import Removals
from influx.retraining import Retraining
from influx.store import Store

SETUPS = ((1, 1), (2, 1), (2, 2))  # threads of the process, workers that share them


def digits_mlp(quick: bool) -> Case:
    return sgd_cases(quick)[1]


def workers(quick: bool) -> None:
    """Every setup in a process of its own, so that its first run starts the workers."""
    case = digits_mlp(quick)
    print(f"Leave-one-out of {_removals(quick)} examples, {case.name} on digits, {case.epochs} epochs; ms a model.")
    print("Each run has an empty store; a first run starts the workers, the next ones find them.\n")
    columns = "threads", "workers", "type", "loader", "tensors", "influx, first", "influx, next"
    header(*columns, "x loader, first", "next", "x tensors, first", "next", "MiB", "MiB, a worker")
    for dtype in DTYPES:
        for setup in SETUPS:
            arguments = [*map(str, setup), str(dtype)[6:], *(["--quick"] if quick else [])]
            subprocess.run([sys.executable, __file__, *arguments], check=True, env=_environment(setup[0]))


def _removals(quick: bool) -> int:
    return 40 if quick else 200


def _environment(threads: int) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(threads)}


def measure_setup(threads: int, workers: int, dtype: torch.dtype, quick: bool) -> None:
    torch.set_num_threads(threads)
    experiment = digits_mlp(quick).experiment(dtype)
    count, rounds = _removals(quick), 1 if quick else 3

    def ours() -> None:
        base = experiment.train(SEED, NOWHERE)
        with tempfile.TemporaryDirectory() as folder:
            retraining = Retraining(seeds=1, workers=workers, models_at_once=20 if quick else None)
            retraining.run(experiment, base, Removals.single(range(count)), SEED, Store(Path(folder)))

    first = seconds(ours)
    runs = in_turn({**_loops(experiment), "ours": ours}, rounds)
    per = {"loader": 1, "tensor": 1, "ours": count}
    each = {name: [1e3 * s / per[name] for s in values] for name, values in runs.items()}
    middle = {name: statistics.median(values) for name, values in each.items()}
    ratios = [f"{x:.3g}" for name in ("loader", "tensor") for x in (middle[name] * count / first / 1e3, ratio(each[name], each["ours"]))]
    times = f"{middle['loader']:.0f}", f"{middle['tensor']:.0f}", f"{1e3 * first / count:.3g}", f"{middle['ours']:.3g}"
    row(threads, workers, str(dtype)[6:], *times, *ratios, f"{peak_mebibytes():.0f}", f"{largest_child_mebibytes():.0f}")


def _loops(experiment: Experiment) -> dict[str, Callable[[], object]]:
    warm_up(experiment)
    return {"loader": lambda: with_loader(experiment, 0), "tensor": lambda: with_slices(experiment, 0)}


@dataclass(frozen=True)
class Command:
    """An `influx validate` from nothing: an empty store, a new process."""

    removed: int | str
    seeds: int
    workers: int
    epochs: int

    @property
    def options(self) -> list[str]:
        return [
            f"retraining.removed={self.removed}", f"retraining.seeds={self.seeds}", f"retraining.workers={self.workers}",
            f"training.epochs={self.epochs}",
        ]  # fmt: skip

    @property
    def models(self) -> int:
        return self.seeds * (1437 if self.removed == "all" else int(self.removed))

    def run(self) -> dict[str, float]:
        """Its stages' seconds, as its record has them."""
        with tempfile.TemporaryDirectory() as folder:
            places = [f"hydra.run.dir={folder}/run", f"store.dir={folder}/store"]
            command = ["validate", "loo=true", "dataset=digits", "model=mlp", "dtype=float32", *self.options, *places]
            environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # as a user starts it
            arguments = [sys.executable, "-m", "influx", *command]
            subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, cwd=folder, env=environment)
            return json.loads(Path(folder, "run", "run.json").read_text())["stage_seconds"]


def command(quick: bool) -> None:
    """Wall seconds of whole commands, interpreter, imports, estimates, tables and pictures included."""
    torch.set_num_threads(1)
    case = digits_mlp(quick)
    experiment = case.experiment(torch.float32)
    print(f"`influx validate dataset=digits model=mlp dtype=float32 training.epochs={case.epochs} ...`; the loops retrain only.\n")
    header("removed", "seeds", "workers", "wall, s", "ms a model", "loader, ms", "tensors, ms", "x loader", "x tensors")
    small, large = (40, 80) if quick else (200, "all")
    commands = [Command(small, 1, 1, case.epochs), Command(large, 2, 1, case.epochs), Command(large, 2, 2, case.epochs)]
    stages = [_command_row(what, experiment, 1 if quick or what.removed == large else 3) for what in commands]
    print("\nSeconds by stage:\n")
    header("removed", "seeds", "workers", *stages[0])
    for what, taken in zip(commands, stages, strict=True):
        row(what.removed, what.seeds, what.workers, *(f"{s:.2f}" for s in taken.values()))


def _command_row(what: Command, experiment: Experiment, rounds: int) -> dict[str, float]:
    """Measure and print one command; returns the seconds by stage of its last round."""
    stages: dict[str, float] = {}
    runs = in_turn({"ours": lambda: stages.update(what.run()), **_loops(experiment)}, rounds)
    each = {name: [1e3 * s / (what.models if name == "ours" else 1) for s in values] for name, values in runs.items()}
    middle = {name: statistics.median(values) for name, values in each.items()}
    wall = statistics.median(runs["ours"])
    ratios = [f"**{ratio(each[name], each['ours']):.3g}**" for name in ("loader", "tensor")]
    times = f"{wall:.1f}", f"{middle['ours']:.3g}", f"{middle['loader']:.0f}", f"{middle['tensor']:.0f}"
    row(what.removed, what.seeds, what.workers, *times, *ratios)
    return stages | {"other": wall - sum(stages.values())}


if __name__ == "__main__":
    measure_setup(int(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3]), "--quick" in sys.argv)
