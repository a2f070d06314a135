"""What the end-to-end tests share: `influx` called in this process, and one tiny run of each command."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from influx import cli

TINY_DATA = ("dataset.train_size=60", "dataset.test_size=8")
TINY_TRUTH = ("retraining.removed=4", "retraining.seeds=2", "resamples=50")
TINY = {
    "train": (*TINY_DATA, "training.epochs=2"),
    "estimate": (*TINY_DATA, "training.epochs=2"),
    "validate": (*TINY_DATA, "training.epochs=2", *TINY_TRUTH),
}
CONVEX = {"model=logistic", "model=linear"}
PICTURES = (
    "influx.pipelines.train.save_history",
    "influx.pipelines.estimate.save_gallery",
    "influx.pipelines.estimate.save_class_influence",
    "influx.pipelines.validate.save_scatter",
)


@dataclass(frozen=True)
class Ran:
    """What one call of `influx` gave; `folders` are the run folders that it made, in order."""

    status: Any
    out: str
    err: str
    folders: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        (only,) = self.folders
        return only


Run = Callable[..., Ran]


def run_folders(cwd: Path) -> set[Path]:
    return {place.parent for place in cwd.glob("outputs/**/.hydra")}


def call(*arguments: str, cwd: Path, pictures: bool = False, env: Mapping[str, str] | None = None) -> Ran:
    """`influx ARGUMENTS` in folder `cwd`, without a new process; nothing of it outlives the call."""
    before, threads, root = run_folders(cwd), torch.get_num_threads(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["influx", *arguments])
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        for picture in () if pictures else PICTURES:
            patch.setattr(picture, lambda *_, **__: None)
        try:
            status = cli.main()
        except SystemExit as stop:
            status = stop.code
        finally:
            for handler in set(root.handlers) - set(handlers):
                handler.close()
            root.handlers[:], root.level = handlers, level
            torch.set_num_threads(threads)
    return Ran(status, out.getvalue(), err.getvalue(), tuple(sorted(run_folders(cwd) - before)))


@pytest.fixture(scope="session")
def run_influx() -> Run:
    return call


@pytest.fixture
def tiny(tmp_path: Path) -> Run:
    """`tiny("validate", "method=exact")` runs the command on 60 digits, four of them left out, in a fresh folder."""
    return lambda command, *arguments, **options: call(command, *_tiny(command, arguments), *arguments, cwd=tmp_path, **options)


def _tiny(command: str, arguments: tuple[str, ...]) -> list[str]:
    """The tiny settings of a command; a training that runs to an optimum has no epochs."""
    chosen = [word for word in arguments if word.startswith("training=")]
    optimum = chosen[-1] in ("training=newton", "training=lbfgs") if chosen else bool(CONVEX & {*arguments})
    return [word for word in TINY[command] if not (optimum and word.startswith("training.epochs"))]


def _finished(command: str, factory: pytest.TempPathFactory) -> Iterator[Ran]:
    ran = call(command, *TINY[command], cwd=factory.mktemp(command), pictures=True)
    assert ran.status == 0, ran.err
    yield ran


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    yield from _finished("train", tmp_path_factory)


@pytest.fixture(scope="session")
def estimated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    yield from _finished("estimate", tmp_path_factory)


@pytest.fixture(scope="session")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    yield from _finished("validate", tmp_path_factory)
