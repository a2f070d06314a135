"""Independent calls side by side through joblib: in processes of this machine (loky), or on a ray or dask cluster.

On a cluster joblib drives one thread a worker, and each waits for the call that it has handed over (`influx.clusters`).
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Generic, TypeVar

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

from influx import clusters
from influx.clusters import Remote
from influx.errors import AccuracyWarning, InfluxError, warn_accuracy
from influx.progress import silence

Item = TypeVar("Item")
Result = TypeVar("Result")

MODULES = {"ray": "ray", "dask": "distributed"}


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What a worker sends back: the call's result or its error, and its warnings (text, category, file, line)."""

    position: int
    result: Result | None
    error: Exception | None
    warned: list[tuple[str, type[Warning], str, int]]

    def open(self, seen: dict[Any, Any]) -> tuple[int, Any]:
        """Position and result; the warnings and the error come out as they would have come without a worker."""
        for text, category, file, line in self.warned:
            if issubclass(category, AccuracyWarning):
                warn_accuracy(text)
            else:
                warnings.warn_explicit(text, category, file, line, registry=seen)
        if self.error is not None:
            raise self.error
        return self.position, self.result


def check(backend: str, cluster: str | None) -> None:
    """Refuse what cannot be used here, in no time and without connecting.

    Raises:
        InfluxError: the backend's extra is not installed, or an address for a backend without.
    """
    if backend not in MODULES and cluster is not None:
        raise InfluxError(
            f"retraining.cluster={cluster} needs retraining.backend=ray or dask: the processes of {backend} are on this machine."
        )
    if backend in MODULES and importlib.util.find_spec(MODULES[backend]) is None:
        raise InfluxError(f"retraining.backend={backend} needs {backend}: pip install 'influx[{backend}]'.")


def in_parallel(
    work: Callable[[Item], Result], items: Iterable[Item], *, workers: int, backend: str = "loky", cluster: str | None = None
) -> Iterator[tuple[int, Result]]:
    """`work(item)` for each item, with its position (0, 1, ... as drawn), as they finish.

    An item is drawn when a worker is about to be free: of those drawn, fewer than 2 x `workers` are unfinished. With loky and one worker
    all happens in this process and thread, one item after the other. Otherwise items are drawn in threads, one at a time; none is drawn
    once this generator has ended. To end it early (close, an error, Ctrl-C) stops the workers; on a dask cluster that was there before, a
    call that runs goes on to its end.

    Args:
        work: importable where the workers are (a function of a module, a method of a class), like what the items are made of. It gets a
            copy of the item and the share of this process's torch threads.
        workers: how many calls run at a time.
        backend: "loky", "ray" or "dask".
        cluster: address of the ray or dask cluster; null uses the ray that this process is connected to, or that of RAY_ADDRESS, or starts
            `workers` processes on this machine for the while.

    Raises:
        InfluxError: `check`; the cluster does not answer or cannot be used; a worker died.
        Exception: whatever `work` raises, and then no more calls are made.
    """
    check(backend, cluster)
    if backend == "loky":
        return _here(work, items) if workers == 1 else _on_processes(work, items, workers)
    return _on_cluster(work, items, workers, clusters.CONNECT[backend](cluster, workers))


def _here(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
    yield from enumerate(map(work, items))


def _on_processes(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[tuple[int, Result]]:
    try:
        yield from _opened(partial(_outcome, work, _share(workers)), items, workers, "loky")
    except TerminatedWorkerError as error:
        raise InfluxError(clusters.died("process")) from error


def _on_cluster(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, cluster: AbstractContextManager[Remote]
) -> Iterator[tuple[int, Result]]:
    with cluster as remote:
        yield from _opened(partial(_sent, remote, work, _share(workers)), items, workers, "threading")


def _sent(remote: Remote, work: Callable[[Item], Result], threads: int, position: int, item: Item) -> Outcome[Result]:
    return remote((_outcome, work, threads, position, item))


def _opened(
    call: Callable[[int, Item], Outcome[Result]], items: Iterable[Item], workers: int, backend: str
) -> Iterator[tuple[int, Result]]:
    # arrays are copied (max_nbytes): the files that joblib would share them through are read-only
    pool = joblib.Parallel(workers, backend, return_as="generator_unordered", pre_dispatch="n_jobs", batch_size=1, max_nbytes=None)
    outcomes = pool(joblib.delayed(call)(position, item) for position, item in enumerate(items))
    seen: dict[Any, Any] = {}
    try:
        for outcome in outcomes:
            yield outcome.open(seen)
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of calls that were cut short
            outcomes.close()


def _share(workers: int) -> int:
    return max(1, torch.get_num_threads() // workers)


# ------------------------------------------------------------------------------------------------------------ in the worker


def _outcome(work: Callable[[Item], Result], threads: int, position: int, item: Item) -> Outcome[Result]:
    if threading.current_thread() is threading.main_thread():
        _leave_with_parent(os.getppid())
    before = torch.get_num_threads()
    result, failure = None, None
    with warnings.catch_warnings(record=True) as caught, silence():
        warnings.simplefilter("always", AccuracyWarning)
        torch.set_num_threads(threads)
        try:
            result = work(item)
        except Exception as error:
            failure = _portable(error)
        finally:
            torch.set_num_threads(before)
    return Outcome(position, result, failure, [(str(w.message), w.category, w.filename, w.lineno) for w in caught])


@cache
def _leave_with_parent(parent: int) -> None:
    """End this process when the one that started it was killed: loky's would wait for work for ever, and hold its terminal."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _portable(error: Exception) -> Exception:
    """The error, with its traceback as a note: tracebacks do not travel."""
    trace = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In the worker:\n{trace}")
    return error
