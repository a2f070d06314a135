"""A long `influx validate` that is killed, interrupted, doubled or damaged ends with the bytes of one that was left in peace."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

SETTINGS = (
    "dataset.train_size=120", "dataset.test_size=8", "model.width=16", "training.epochs=30", "training.batch_size=16",
    "retraining.removed=24", "retraining.seeds=2", "retraining.models_at_once=3", "resamples=50", "store.dir=store",
)  # fmt: skip
SHARDS = 16  # 24 removals in stacks of 3, for 2 seeds
SAME_BYTES = ("model.safetensors", "influence.npz", "ground_truth.npz", "correlations.csv", "correlations.md", "per_test.csv")

# Each run is a process of its own, forked from a server that has imported torch once: a fresh interpreter takes seconds to do that.
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload(["influx.app", "influx.pipelines"])


def validate(place: Path, arguments: tuple[str, ...]) -> None:
    """`influx validate ARGUMENTS` in `place`, without its pictures; the screen goes into a file, and each stack that is begun leaves a line
    in another."""
    from influx import cli
    from influx.pipelines import estimate, train
    from influx.pipelines import validate as compared
    from influx.shards import Shard
    from influx.store import digest

    os.setsid()  # a job of its own, which is killed with its workers
    os.chdir(place)
    train.save_history = estimate.save_gallery = compared.save_scatter = lambda *_, **__: None
    screen = os.open("screen", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(screen, 1)
    os.dup2(screen, 2)
    retrain = Shard.retrain

    def noted(shard: Shard):
        with Path("begun").open("a") as file:  # one short write: whole, or not at all
            file.write(f"{digest(shard.key)}\n")
        return retrain(shard)

    Shard.retrain = noted
    sys.argv = ["influx", "validate", *arguments]
    sys.exit(cli.main())


def start(place: Path, *arguments: str) -> BaseProcess:
    process = CLEAN.Process(target=validate, args=(place, (*SETTINGS, "hydra.run.dir=run", *arguments)))
    process.start()
    return process


def finish(place: Path, *arguments: str) -> None:
    process = start(place, *arguments)
    process.join(60)
    assert process.exitcode == 0, screen(place)


def screen(place: Path) -> str:
    return (place / "screen").read_text()


def begun(place: Path) -> Counter[str]:
    """How often each stack was begun."""
    return Counter((place / "begun").read_text().split() if (place / "begun").exists() else [])


def stored(place: Path) -> list[Path]:
    return sorted((place / "store/retrained").rglob("*.safetensors"))


def record(place: Path, run: str = "run") -> dict:
    return json.loads((place / run / "run.json").read_text())


def assert_same_bytes(place: Path, whole: Path, run: str = "run") -> None:
    for name in SAME_BYTES:
        assert (place / run / name).read_bytes() == (whole / "run" / name).read_bytes(), name
    assert values(place) == values(whole)


def values(place: Path) -> dict[str, bytes]:
    """What the store holds of each stack (a header's order is not fixed)."""
    return {entry.stem: load_file(entry)["values"].tobytes() for entry in stored(place)}


def kill(process: BaseProcess) -> None:
    with suppress(ProcessLookupError):  # not yet a job of its own
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def await_begun(place: Path, count: int, process: BaseProcess) -> None:
    """Return once `count` stacks have been begun."""
    while begun(place).total() < count:
        assert process.is_alive(), screen(place)
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left in peace."""
    place = tmp_path_factory.mktemp("whole")
    finish(place)
    assert len(stored(place)) == len(begun(place)) == begun(place).total() == SHARDS
    return place


def kill_and_finish(place: Path, whole: Path, draw: random.Random, kills: int) -> int:
    """Kill a run at most `kills` times, every other time while stacks are being trained and stored, else anywhere from the first import to
    the last table; then let it end. The number of kills that it took."""
    stages, killed = record(whole)["stage_seconds"], 0
    while killed < kills and len(stored(place)) < SHARDS:
        process, before = start(place), begun(place).total()
        if killed % 2 == 0:
            while begun(place).total() == before and process.is_alive():
                time.sleep(0.002)
            process.join(draw.uniform(0, 2 * stages["retrain"] / SHARDS))  # two stacks' time
        else:
            process.join(draw.uniform(0, sum(stages.values()) / 2))
        if process.is_alive():
            kill(process)
            killed += 1
            assert values(place).items() <= values(whole).items()  # whole entries only
    finish(place)
    return killed


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path: Path, whole: Path, kills: int) -> None:
    draw, total = random.Random(kills), 0
    while total < kills:
        place = tmp_path / str(total)
        place.mkdir()
        killed = kill_and_finish(place, whole, draw, kills - total)
        assert_same_bytes(place, whole)
        repeated = begun(place).total() - SHARDS
        print(f"{killed} kills: {repeated} of {SHARDS} stacks trained again")
        assert len(begun(place)) == SHARDS
        assert repeated <= killed  # the one in work
        total += max(1, killed)


def test_two_processes_on_one_store_share_the_work(tmp_path: Path, whole: Path) -> None:
    both = [start(tmp_path, f"hydra.run.dir={run}") for run in ("one", "two")]
    for process in both:
        process.join(60)
        assert process.exitcode == 0, screen(tmp_path)
    for run in ("one", "two"):
        assert_same_bytes(tmp_path, whole, run)
    assert begun(tmp_path) == begun(whole)  # every stack once
    reused = [int(word.split()[0]) for run in ("one", "two") for word in record(tmp_path, run)["reused"] if "shards" in word]
    assert sum(SHARDS - count for count in reused) + SHARDS * (2 - len(reused)) == SHARDS


def test_a_process_that_waits_for_a_killed_one_goes_on(tmp_path: Path, whole: Path) -> None:
    first, second = start(tmp_path), start(tmp_path, "hydra.run.dir=two")
    await_begun(tmp_path, 3, first)
    kill(first)
    second.join(60)
    assert second.exitcode == 0, screen(tmp_path)
    assert_same_bytes(tmp_path, whole, "two")
    assert begun(tmp_path).total() <= SHARDS + 1


@pytest.mark.parametrize("damage", ["a bit", "the end", "everything"])
def test_a_damaged_stack_is_reported_and_trained_again_to_the_same_bytes(tmp_path: Path, whole: Path, damage: str) -> None:
    shutil.copytree(whole / "store", tmp_path / "store")
    entry = stored(tmp_path)[5]
    content = bytearray(entry.read_bytes())
    if damage == "a bit":
        content[-1] ^= 1
    entry.write_bytes({"a bit": bytes(content), "the end": bytes(content[:-20]), "everything": b""}[damage])
    finish(tmp_path)
    assert_same_bytes(tmp_path, whole)
    assert begun(tmp_path) == {entry.stem: 1}
    (said,) = [warning for warning in record(tmp_path)["warnings"] if "damaged" in warning]
    assert entry.name in said
    assert f"warning: {said}" in screen(tmp_path)
    assert f"{SHARDS - 1} of {SHARDS} retraining shards" in record(tmp_path)["reused"]


def test_an_interrupted_run_says_how_to_go_on_and_does(tmp_path: Path, whole: Path) -> None:
    process = start(tmp_path)
    await_begun(tmp_path, 4, process)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert screen(tmp_path).splitlines()[-1] == (
        "influx: interrupted; finished results are in the store, and the same command goes on from there."
    )
    assert "Traceback" not in screen(tmp_path)
    assert record(tmp_path)["status"] == "failed: KeyboardInterrupt"
    assert not list((tmp_path / "store/locks").iterdir())
    finish(tmp_path)
    assert_same_bytes(tmp_path, whole)
    assert begun(tmp_path).total() <= SHARDS + 1


def test_more_removals_or_seeds_go_on_from_the_fewer(tmp_path: Path, whole: Path) -> None:
    """One seed first: its stacks serve the run of two."""
    finish(tmp_path, "retraining.seeds=1")
    assert len(stored(tmp_path)) == SHARDS // 2
    finish(tmp_path)
    assert_same_bytes(tmp_path, whole)
    assert begun(tmp_path).total() == SHARDS


@pytest.mark.slow
def test_two_workers_killed_and_resumed_by_one(tmp_path: Path, whole: Path) -> None:
    process = start(tmp_path, "retraining.workers=2")
    while len(stored(tmp_path)) < 3:
        assert process.is_alive(), screen(tmp_path)
        time.sleep(0.005)
    kill(process)
    finish(tmp_path)
    assert_same_bytes(tmp_path, whole)
    truth = np.load(tmp_path / "run/ground_truth.npz")
    assert truth["change"].shape == (24, 8, 2)
