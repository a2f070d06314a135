"""Independent calls side by side through joblib: in processes of this machine (loky), or on a ray or dask cluster.

On a cluster joblib drives one thread a worker, and each waits for the call that it has handed over. joblib's own backends of these names do
not serve: ray's cannot return results as they finish, binds each call to a process that may be busy, and keeps every argument until the
end; dask's waits for ever for a call whose worker was killed, and draws as many items as the whole cluster has cores.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

from influx.errors import AccuracyWarning, InfluxError, warn_accuracy

Item = TypeVar("Item")
Result = TypeVar("Result")
Remote = Callable[[tuple[Any, ...]], bytes]  # `_outcome` of these arguments, elsewhere

MODULES = {"ray": "ray", "dask": "distributed"}
PATIENCE = 10  # seconds for a cluster to answer


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
    return _on_cluster(work, items, workers, _ray(cluster, workers) if backend == "ray" else _dask(cluster, workers))


def _here(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
    yield from enumerate(map(work, items))


def _on_processes(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[tuple[int, Result]]:
    try:
        yield from _opened(partial(_outcome, work, _share(workers)), items, workers, "loky")
    except TerminatedWorkerError as error:
        raise InfluxError(_died("process")) from error


def _on_cluster(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, cluster: AbstractContextManager[Remote]
) -> Iterator[tuple[int, Result]]:
    with cluster as remote:
        yield from _opened(partial(_sent, remote, work, _share(workers)), items, workers, "threading")


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
    before = torch.get_num_threads()
    result, failure = None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AccuracyWarning)
        torch.set_num_threads(threads)
        try:
            result = work(item)
        except Exception as error:
            failure = _portable(error)
        finally:
            torch.set_num_threads(before)
    return Outcome(position, result, failure, [(str(w.message), w.category, w.filename, w.lineno) for w in caught])


def _portable(error: Exception) -> Exception:
    """The error, with its traceback as a note: tracebacks do not travel."""
    trace = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In the worker:\n{trace}")
    return error


def _unpacked(packed: list[bytes]) -> bytes:
    """A call that came as bytes, of which nothing is kept while it runs; the outcome goes back as bytes.

    Left to ray or dask, arrays would arrive read-only.
    """
    return pickle.dumps(_outcome(*pickle.loads(packed.pop())))


# ----------------------------------------------------------------------------------------------------------------- clusters


def _sent(remote: Remote, work: Callable[[Item], Result], threads: int, position: int, item: Item) -> Outcome[Result]:
    return pickle.loads(remote((work, threads, position, item)))


@dataclass(frozen=True)
class _Calls:
    """Calls elsewhere, each with a thread that waits for it. `end` lets no thread wait on: ray would crash when it is shut down."""

    submit: Callable[[tuple[Any, ...]], Any]
    result: Callable[[Any], bytes]
    cancel: Callable[[Any], object]
    running: dict[int, Any] = field(default_factory=dict)  # by thread
    ended: threading.Event = field(default_factory=threading.Event)

    def __call__(self, arguments: tuple[Any, ...]) -> bytes:
        thread = threading.get_ident()
        self.running[thread] = None
        try:
            if self.ended.is_set():
                raise InfluxError("stopped")  # seen by nobody
            call = self.running[thread] = self.submit(arguments)
            try:
                return self.result(call)
            except BaseException:
                self.cancel(call)
                raise
        finally:
            del self.running[thread]

    def end(self) -> None:
        self.ended.set()
        until = time.monotonic() + PATIENCE
        while self.running and time.monotonic() < until:
            for call in filter(None, list(self.running.values())):
                self.cancel(call)
            time.sleep(0.02)


@contextmanager
def _ray(cluster: str | None, workers: int) -> Iterator[Remote]:
    import ray

    ours = not ray.is_initialized()
    if ours:
        _connect_ray(cluster or os.environ.get("RAY_ADDRESS") or "local", workers)
    run = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(_unpacked)

    def result(call: Any) -> bytes:
        try:
            return ray.get(call)
        except ray.exceptions.RayTaskError as error:
            raise InfluxError(_unable("ray", error.cause)) from error
        except ray.exceptions.RayError as error:
            raise InfluxError(_died("ray process")) from error

    calls = _Calls(lambda arguments: run.remote([ray.cloudpickle.dumps(arguments)]), result, partial(ray.cancel, force=True))
    try:
        if ray.cluster_resources().get("CPU", 0) < 1:
            raise InfluxError("the ray cluster has no CPU: add a node with `ray start --address=...`.")
        yield calls
    finally:
        calls.end()
        if ours:
            ray.shutdown()


def _connect_ray(address: str, workers: int) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=workers, include_dashboard=False, **quiet)
        return
    _knock(address)
    try:
        ray.init(address, **quiet)
    except (Exception, SystemExit) as error:  # it exits when something else listens at the port
        raise InfluxError(_silent("ray", address, error)) from error


@contextmanager
def _dask(cluster: str | None, workers: int) -> Iterator[Remote]:
    import cloudpickle
    import dask
    import distributed

    settings = {"distributed.scheduler.allowed-failures": 0, "distributed.admin.large-graph-warning-threshold": "1 TiB"}
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        for name in ("distributed", "distributed.client"):
            log = logging.getLogger(name)
            stack.callback(log.setLevel, log.level)
            log.setLevel(logging.CRITICAL)
        client = _connect_dask(cluster, workers, stack)

        def result(call: Any) -> bytes:
            try:
                return call.result()
            except distributed.scheduler.KilledWorker as error:
                raise InfluxError(_died("dask process")) from error
            except Exception as error:
                raise InfluxError(_unable("dask", error)) from error

        calls = _Calls(
            lambda arguments: client.submit(_unpacked, [cloudpickle.dumps(arguments)], pure=False),
            result,
            lambda call: call.cancel(force=True),
        )
        stack.callback(calls.end)
        yield calls


def _connect_dask(address: str | None, workers: int, stack: ExitStack) -> Any:
    from distributed import Client, LocalCluster

    if address is None:
        local = LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=":0", silence_logs=logging.CRITICAL)
        return stack.enter_context(Client(stack.enter_context(local), set_as_default=False))
    _knock(address)
    try:
        client = stack.enter_context(Client(address, timeout=PATIENCE, set_as_default=False))
        client.wait_for_workers(1, timeout=PATIENCE)
    except Exception as error:
        raise InfluxError(_silent("dask", address, error)) from error
    most = max(client.nthreads().values())
    if most > 1:
        raise InfluxError(
            f"the dask workers at {address} run {most} calls at a time in one process, where they would share torch's seed and threads: "
            "start them with `dask worker --nthreads 1 --nworkers N`."
        )
    return client


def _knock(address: str) -> None:
    """Try the port, where the address names one: ray gives up only after minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
        except OSError as error:
            raise InfluxError(
                f"nothing answers at retraining.cluster={address} ({error}): is the cluster running, and the port right?"
            ) from error


# ------------------------------------------------------------------------------------------------------------- what to say


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def _died(what: str) -> str:
    return (
        f"a {what} that retrained was killed, most often because memory ran out: use fewer retraining.workers. "
        "Finished results are in the store, and the same command goes on from there."
    )


def _unable(backend: str, error: BaseException) -> str:
    return (
        f"a {backend} worker could not run influx ({_first_line(error)}): every node needs the same versions of python, influx and of your "
        "own modules."
    )


def _silent(backend: str, address: str, error: BaseException) -> str:
    return f"no {backend} cluster that can be used at {address} ({_first_line(error)}): start it, or leave retraining.cluster out."
