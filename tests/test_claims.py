"""Claims: one process does one piece of work, and a process that dies takes nothing with it."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from influx.errors import InfluxError
from influx.store import Claim, Store, is_sound

KEY = {"seed": 0}
fork = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def locks(store: Store) -> list[Path]:
    return list((store.root / "locks").iterdir())


def taken(store: Store, key: dict[str, int] = KEY) -> Claim:
    claim = store.claim("model", key)
    assert claim is not None
    return claim


# ------------------------------------------------------------------------------------------------------------ one process


def test_a_claim_is_taken_once_and_again_after_its_release(store: Store) -> None:
    claim = taken(store)
    assert store.claim("model", dict(KEY)) is None
    claim.release()
    again = taken(store)
    claim.release()  # a second release lets go of nobody else's claim
    assert store.claim("model", KEY) is None
    again.release()


def test_claims_of_other_entries_are_other_claims(store: Store) -> None:
    with taken(store), taken(store, {"seed": 1}):
        other = store.claim("retrained", KEY)
        assert other is not None
        other.release()


def test_a_claim_ends_with_its_block_even_when_the_work_fails_and_leaves_no_file(store: Store) -> None:
    with suppress(ZeroDivisionError), taken(store):
        assert len(locks(store)) == 1
        _ = 1 / 0
    assert locks(store) == []
    taken(store).release()


def test_another_thread_may_release(store: Store) -> None:
    claim = taken(store)
    thread = threading.Thread(target=claim.release)
    thread.start()
    thread.join()
    taken(store).release()


def test_a_claim_that_nobody_keeps_is_free(store: Store) -> None:
    assert store.claim("model", KEY) is not None
    taken(store).release()


def test_without_a_place_every_claim_succeeds_and_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(None)
    with taken(store), taken(store):
        store.wait("model", KEY)
    store.sweep()
    assert not list(tmp_path.iterdir())


def test_a_claim_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InfluxError, match=r"store\.dir=.*file cannot be written \(Not a directory\): choose another place, or null"):
        Store(tmp_path / "file").claim("model", KEY)


def test_waiting_for_what_nobody_holds_is_no_wait(store: Store) -> None:
    begun = time.monotonic()
    store.wait("model", KEY)
    assert time.monotonic() - begun < 1
    assert locks(store) == []


# -------------------------------------------------------------------------------------------------------- several processes


def start(target: Callable[..., None], *arguments: Any) -> Any:
    process = fork.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def _hold(store: Store, held: Any, go_on: Any) -> None:
    with taken(store):
        held.set()
        go_on.wait(30)


def test_a_wait_lasts_as_long_as_another_process_holds_the_claim(store: Store) -> None:
    held, go_on = fork.Event(), fork.Event()
    holder = start(_hold, store, held, go_on)
    assert held.wait(20)
    assert store.claim("model", KEY) is None
    threading.Timer(0.5, go_on.set).start()
    begun = time.monotonic()
    store.wait("model", KEY)
    assert 0.4 < time.monotonic() - begun < 10
    holder.join()
    taken(store).release()


def test_a_killed_process_loses_its_claim(store: Store) -> None:
    held = fork.Event()
    holder = start(_hold, store, held, fork.Event())
    assert held.wait(20)
    threading.Timer(0.3, holder.kill).start()
    store.wait("model", KEY)
    holder.join()
    assert holder.exitcode == -signal.SIGKILL
    taken(store).release()


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def test_a_child_does_not_inherit_a_claim(store: Store) -> None:
    with taken(store):
        child = start(_sleep, 30)
    taken(store).release()
    child.kill()
    child.join()


def _wait(store: Store, ready: Any) -> None:
    ready.set()
    with suppress(KeyboardInterrupt):
        store.wait("model", KEY)
        os._exit(1)
    os._exit(7)


def test_ctrl_c_ends_a_wait(store: Store) -> None:
    ready = fork.Event()
    with taken(store):
        waiting = start(_wait, store, ready)
        assert ready.wait(20)
        time.sleep(0.2)
        os.kill(waiting.pid, signal.SIGINT)
        waiting.join(20)
    assert waiting.exitcode == 7


KEYS = [{"seed": seed} for seed in range(40)]


def _work(store: Store, log: Path, barrier: Any) -> None:
    """The protocol of `influx.store` for every key, in an order of its own."""
    for key in random.Random(os.getpid()).sample(KEYS, len(KEYS)):
        if store.load("model", key) is None:
            while (claim := store.claim("model", key)) is None:
                store.wait("model", key)
            with claim:
                if store.load("model", key) is None:
                    with log.open("a") as file:
                        file.write(f"{key['seed']}\n")
                    time.sleep(random.random() / 500)
                    store.save("model", key, {"a": torch.ones(3)})
    barrier.wait(20)


def test_processes_that_race_do_all_work_once(store: Store, tmp_path: Path) -> None:
    barrier = fork.Barrier(4)
    workers = [start(_work, store, tmp_path / "log", barrier) for _ in range(4)]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(len(KEYS)))
    assert locks(store) == []


def _contend(store: Store, seconds: float, inside: Any, most: Any) -> None:
    """Take and release one claim, unlinking its file each time; `most` is the largest number of holders ever seen."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        claim = store.claim("model", KEY)
        if claim is None:
            continue
        with claim:
            with inside.get_lock():
                inside.value += 1
                most.value = max(most.value, inside.value)
            with inside.get_lock():
                inside.value -= 1


def test_unlinking_the_lock_file_never_lets_two_in(store: Store) -> None:
    inside, most = fork.Value("i", 0), fork.Value("i", 0)
    workers = [start(_contend, store, 1.5, inside, most) for _ in range(3)]
    for worker in workers:
        worker.join(60)
    assert most.value == 1


def _save_forever(store: Store, seed: int) -> None:
    draw = random.Random(seed)
    while True:
        key = {"seed": draw.randrange(5)}
        with taken(store, key):
            store.save("model", key, {"a": torch.full((20_000,), draw.random())}, "any")


def test_two_hundred_kills_leave_no_damaged_entry(store: Store) -> None:
    draw = random.Random(0)
    kills = 0
    while kills < 200 or len(list(store.root.rglob("*.safetensors"))) < 5:  # a busy machine gets less done between two kills
        assert kills < 2000
        kills += 1
        writer = start(_save_forever, store, kills)
        time.sleep(draw.random() / 40)
        writer.kill()
        writer.join()
        assert all(is_sound(path.read_bytes(), path.stem) for path in store.root.rglob("*.safetensors"))
    assert len(list(store.root.rglob("*.safetensors"))) == 5
    left = [*store.root.rglob(".writing-*"), *locks(store)]
    assert left  # some were killed in the middle
    for path in left:
        os.utime(path, (0, 0))
    store.check()
    assert not any(path.exists() for path in left)
