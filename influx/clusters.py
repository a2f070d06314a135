"""Calls on a ray or dask cluster.

joblib's own backends of these names do not serve: ray's cannot return results as they finish, binds each call to a process that may be
busy, and keeps every argument until the end; dask's waits for ever for a call whose worker was killed, and draws as many items as the
whole cluster has cores.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from influx.errors import InfluxError

Remote = Callable[[tuple[Any, ...]], Any]  # a function and its arguments, called elsewhere

PATIENCE = 10  # seconds for a cluster to answer


def _called(packed: list[bytes]) -> bytes:
    """A call that came as bytes, of which nothing is kept while it runs; the result goes back as bytes.

    Left to ray or dask, arrays would arrive read-only.
    """
    function, *arguments = pickle.loads(packed.pop())
    return pickle.dumps(function(*arguments))


@dataclass(frozen=True)
class _Calls:
    """Calls elsewhere, each with a thread that waits for it. `end` lets no thread wait on: ray would crash when it is shut down."""

    submit: Callable[[tuple[Any, ...]], Any]
    result: Callable[[Any], bytes]
    cancel: Callable[[Any], object]
    running: dict[int, Any] = field(default_factory=dict)  # by thread
    ended: threading.Event = field(default_factory=threading.Event)

    def __call__(self, arguments: tuple[Any, ...]) -> Any:
        thread = threading.get_ident()
        self.running[thread] = None
        try:
            if self.ended.is_set():
                raise InfluxError("stopped")  # seen by nobody
            call = self.running[thread] = self.submit(arguments)
            try:
                return pickle.loads(self.result(call))
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
        connect_ray(cluster or os.environ.get("RAY_ADDRESS") or "local", workers, key="retraining.cluster")
    run = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(_called)

    def result(call: Any) -> bytes:
        try:
            return ray.get(call)
        except ray.exceptions.RayTaskError as error:
            raise InfluxError(unable("ray", error.cause)) from error
        except ray.exceptions.RayError as error:
            raise InfluxError(died("ray process")) from error

    calls = _Calls(lambda arguments: run.remote([ray.cloudpickle.dumps(arguments)]), result, partial(ray.cancel, force=True))
    try:
        if ray.cluster_resources().get("CPU", 0) < 1:
            raise InfluxError("the ray cluster has no CPU: add a node with `ray start --address=...`.")
        yield calls
    finally:
        calls.end()
        if ours:
            ray.shutdown()


def connect_ray(address: str, workers: int, *, key: str) -> None:
    """Connect this process to the ray cluster at `address`; "local" starts one with `workers` processors here.

    Raises:
        InfluxError: there is none that can be used; `key` is the setting that named it.
    """
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=workers, include_dashboard=False, **quiet)
        return
    _knock(address, key)
    try:
        ray.init(address, **quiet)
    except (Exception, SystemExit) as error:  # it exits when something else listens at the port
        raise InfluxError(_silent("ray", address, error, key)) from error


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
                raise InfluxError(died("dask process")) from error
            except Exception as error:
                raise InfluxError(unable("dask", error)) from error

        calls = _Calls(
            lambda arguments: client.submit(_called, [cloudpickle.dumps(arguments)], pure=False),
            result,
            lambda call: call.cancel(force=True),
        )
        stack.callback(calls.end)
        yield calls


def _connect_dask(address: str | None, workers: int, stack: ExitStack) -> Any:
    from distributed import Client, LocalCluster

    if address is None:
        local = LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
        )
        return stack.enter_context(Client(stack.enter_context(local), set_as_default=False))
    _knock(address, "retraining.cluster")
    try:
        client = stack.enter_context(Client(address, timeout=PATIENCE, set_as_default=False))
        client.wait_for_workers(1, timeout=PATIENCE)
    except Exception as error:
        raise InfluxError(_silent("dask", address, error, "retraining.cluster")) from error
    most = max(client.nthreads().values())
    if most > 1:
        raise InfluxError(
            f"the dask workers at {address} run {most} calls at a time in one process, where they would share torch's seed and threads: "
            "start them with `dask worker --nthreads 1 --nworkers N`."
        )
    return client


def _knock(address: str, key: str) -> None:
    """Try the port, where the address names one: ray gives up only after minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
        except OSError as error:
            raise InfluxError(f"nothing answers at {key}={address} ({error}): is the cluster running, and the port right?") from error


# ------------------------------------------------------------------------------------------------------------- what to say


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def died(what: str) -> str:
    """The message when a worker was killed."""
    return (
        f"a {what} that retrained was killed, most often because memory ran out: use fewer retraining.workers. "
        "Finished results are in the store, and the same command goes on from there."
    )


def unable(backend: str, error: BaseException) -> str:
    """The message when a call could not even begin."""
    return (
        f"a {backend} worker could not run influx ({_first_line(error)}): every node needs the same versions of python, influx and of your "
        "own modules."
    )


def _silent(backend: str, address: str, error: BaseException, key: str) -> str:
    return f"no {backend} cluster that can be used at {address} ({_first_line(error)}): start it, or leave {key} out."


CONNECT: dict[str, Callable[[str | None, int], AbstractContextManager[Remote]]] = {"ray": _ray, "dask": _dask}  # (address, workers)
