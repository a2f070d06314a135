"""Calls side by side: the same behaviour in this process, in worker processes, and on a ray and a dask cluster."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import time
import types
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from influx import clusters, workers
from influx.errors import AccuracyWarning, InfluxError, NumericalError, warn_accuracy
from influx.workers import check, in_parallel

LOCAL = ({"workers": 1}, {"workers": 2})


@dataclass
class Sleep:
    seconds: float
    mark: Path | None = None


def square(x: float) -> float:
    return x * x


def sleep(item: Sleep) -> tuple[int, float]:
    if item.mark is not None:
        item.mark.write_text(str(os.getpid()))
    time.sleep(item.seconds)
    return os.getpid(), item.seconds


def diverge(x: int) -> int:
    if x == 2:
        raise NumericalError("diverged at 2: lower training.lr")
    return x


def interrupt(x: int) -> int:
    raise KeyboardInterrupt


def warn(x: int) -> int:
    warn_accuracy(f"imprecise {x}")
    warnings.warn("something else", RuntimeWarning, stacklevel=1)
    return x


def threads(_: int) -> int:
    return torch.get_num_threads()


def add_one(arrays: tuple[np.ndarray, torch.Tensor]) -> tuple[np.ndarray, torch.Tensor]:
    for array in arrays:
        array += 1  # an array that came through shared memory cannot be written
    return arrays


def kill(x: int) -> int:
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return x


def gone(pid: int) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # waits only for its parent to look
            return True
        time.sleep(0.05)
    return False


class NeedsTwo(Exception):
    def __init__(self, one: object, two: object) -> None:
        super().__init__(f"{one} and {two}")


def needs_two(_: int) -> None:
    raise NeedsTwo("this", "that")


# ----------------------------------------------------------------------------------------------------------- this machine


def test_one_worker_draws_does_and_yields_one_item_after_the_other():
    happened = []

    def items() -> Iterator[int]:
        for x in range(3):
            happened.append(f"draw {x}")
            yield x

    def work(x: int) -> int:
        happened.append(f"do {x}")
        return x + 1

    for position, result in in_parallel(work, items(), workers=1):
        assert result == position + 1
        happened.append(f"got {position}")
    assert happened == [f"{step} {x}" for x in range(3) for step in ("draw", "do", "got")]


def test_results_come_as_they_finish_each_with_its_position():
    list(in_parallel(square, range(4), workers=2))  # the processes are up
    order = [position for position, _ in in_parallel(sleep, map(Sleep, (1.0, 0.1, 0.1)), workers=2)]
    assert order == [1, 2, 0]


def draws(**where) -> None:
    drawn, finished, most = [], 0, 0

    def items() -> Iterator[Sleep]:
        for x in range(12):
            drawn.append(x)
            yield Sleep(0.05)

    for _ in in_parallel(sleep, items(), **where):
        most = max(most, len(drawn) - finished)
        finished += 1
    assert finished == 12
    assert most <= 3 * where["workers"], most  # fewer than two a worker, and what has finished since


@pytest.mark.parametrize("where", LOCAL, ids=str)
def test_items_are_drawn_when_they_are_about_to_be_needed(where):
    draws(**where)


def keeps_warnings(**where) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        warnings.simplefilter("always", AccuracyWarning)
        assert sorted(in_parallel(warn, range(3), **where)) == [(0, 0), (1, 1), (2, 2)]
    assert sorted(str(w.message) for w in caught if w.category is AccuracyWarning) == ["imprecise 0", "imprecise 1", "imprecise 2"]
    (other,) = [w for w in caught if w.category is RuntimeWarning]  # the same text from the same line is said once
    assert Path(other.filename).name == "test_workers.py"


@pytest.mark.parametrize("where", LOCAL, ids=str)
def test_warnings_in_a_worker_are_warnings_here(where):
    keeps_warnings(**where)


def shares_threads(monkeypatch: pytest.MonkeyPatch, **where) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert [result for _, result in in_parallel(threads, range(2), **where)] == [3, 3]


def test_workers_share_the_threads(monkeypatch):
    shares_threads(monkeypatch, workers=2)
    assert workers._share(7) == 1
    monkeypatch.setattr(torch, "set_num_threads", lambda _: pytest.fail("the process's own threads are not touched"))
    assert [result for _, result in in_parallel(threads, range(2), workers=1)] == [6, 6]


def hands_over_arrays(**where) -> None:
    items = [(np.full(300_000, float(x)), torch.full((300_000,), float(x))) for x in range(2)]  # 2.4 MB: joblib would share them
    for position, (array, tensor) in in_parallel(add_one, items, **where):
        assert (array == position + 1).all()
        assert (tensor == position + 1).all()
        array += 1
    assert (items[0][0] == 0).all()  # a worker has a copy


def test_arrays_arrive_writable():
    hands_over_arrays(workers=2)


def stops_at_an_error(**where) -> None:
    with pytest.raises(NumericalError, match=r"^diverged at 2: lower training\.lr") as raised:
        list(in_parallel(diverge, range(100), **where))
    assert where == {"workers": 1} or "in diverge" in "".join(raised.value.__notes__)


@pytest.mark.parametrize("where", LOCAL, ids=str)
def test_an_error_in_a_worker_is_that_error_here(where):
    stops_at_an_error(**where)


def stops_at_a_failed_draw(**where) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise InfluxError("the store is gone")

    with pytest.raises(InfluxError, match="the store is gone"):
        list(in_parallel(square, items(), **where))


@pytest.mark.parametrize("where", LOCAL, ids=str)
def test_an_error_while_drawing_comes_out(where):
    stops_at_a_failed_draw(**where)


def test_an_error_that_cannot_be_sent_is_told():
    """`pickle` would call its constructor with one argument, in the middle of joblib's threads."""
    outcome = workers._outcome(needs_two, 1, 0, 0)
    assert isinstance(outcome.error, NeedsTwo | RuntimeError)  # tblib, which comes with dask, makes every error fit to be sent
    with pytest.raises((NeedsTwo, RuntimeError), match="this and that"):
        outcome.open({})


def test_only_errors_become_outcomes():
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        workers._outcome(interrupt, before + 1, 0, 0)
    assert torch.get_num_threads() == before


def closes_early(tmp_path: Path, **where) -> None:
    marks = [tmp_path / str(x) for x in range(2)]
    with closing(in_parallel(sleep, [Sleep(0.5), *(Sleep(60, mark) for mark in marks)], **where)) as results:
        position, (first, _) = next(results)
        while not all(mark.exists() and mark.read_text() for mark in marks):
            time.sleep(0.01)
        begun = time.monotonic()
    assert position == 0
    assert time.monotonic() - begun < 30
    assert all(gone(int(mark.read_text())) for mark in marks)
    assert gone(first)


def test_closing_early_stops_the_processes(tmp_path):
    closes_early(tmp_path, workers=2)


def tells_of_a_killed_worker(word: str, **where) -> None:
    with pytest.raises(InfluxError, match=f"a {word} that retrained was killed.*fewer retraining.workers.*goes on from there"):
        list(in_parallel(kill, range(4), **where))


def test_a_killed_process_is_told():
    tells_of_a_killed_worker("process", workers=2)


def test_no_items():
    for where in LOCAL:
        assert list(in_parallel(square, (), **where)) == []


@pytest.mark.parametrize(("backend", "module"), [("ray", "ray"), ("dask", "distributed")])
def test_a_missing_extra_is_named(backend, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InfluxError, match=rf"retraining\.backend={backend} needs {backend}: pip install 'influx\[{backend}\]'\."):
        in_parallel(square, (), workers=2, backend=backend)


def test_an_address_needs_a_cluster():
    with pytest.raises(InfluxError, match=r"retraining\.cluster=auto needs retraining\.backend=ray or dask"):
        check("loky", "auto")
    check("loky", None)


# ------------------------------------------------------------------------------------------------------------------ clusters


def behaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **where) -> None:
    """Everything that the processes of this machine do, in an order that needs few new processes."""
    assert sorted(in_parallel(square, range(5), **where)) == [(x, x * x) for x in range(5)]
    assert sorted(in_parallel(square, range(2), **{**where, "workers": 1})) == [(0, 0), (1, 1)]
    draws(**where)
    keeps_warnings(**where)
    hands_over_arrays(**where)
    stops_at_a_failed_draw(**where)
    stops_at_an_error(**where)
    with monkeypatch.context() as patch:
        shares_threads(patch, **where)


def elsewhere_only(x: int) -> int:
    return x


def tells_of_a_missing_module(monkeypatch: pytest.MonkeyPatch, **where) -> None:
    module = types.ModuleType("only_here")
    module.work = types.FunctionType(elsewhere_only.__code__, vars(module), "work")
    module.work.__module__, module.work.__qualname__ = "only_here", "work"
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(InfluxError, match=r"worker could not run influx \(ModuleNotFoundError: .*only_here.*same versions"):
        list(in_parallel(module.work, range(2), **where))


def nobody_answers(**where) -> None:
    begun = time.monotonic()
    with pytest.raises(InfluxError, match=r"nothing answers at retraining\.cluster=127\.0\.0\.1:9 .*is the cluster running"):
        list(in_parallel(square, range(2), cluster="127.0.0.1:9", **where))
    assert time.monotonic() - begun < 15


@pytest.fixture(scope="module", autouse=True)
def nodes_find_this_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def ray_nodes():
    """The address of a ray cluster of two nodes with one processor each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def node(_: int) -> str:
    import ray

    time.sleep(1)
    return ray.get_runtime_context().get_node_id()


@pytest.mark.ray
def test_ray_cluster(ray_nodes, monkeypatch, tmp_path):
    where = {"workers": 2, "backend": "ray", "cluster": ray_nodes}
    assert len({name for _, name in in_parallel(node, range(4), **where)}) == 2
    behaves(monkeypatch, tmp_path, **where)
    tells_of_a_missing_module(monkeypatch, **where)
    closes_early(tmp_path, **where)
    tells_of_a_killed_worker("ray process", **where)


@pytest.mark.ray
def test_ray_that_was_connected_stays_connected(ray_nodes, monkeypatch):
    import ray

    ray.init(ray_nodes, log_to_driver=False)
    try:
        assert len({name for _, name in in_parallel(node, range(4), workers=2, backend="ray")}) == 2
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", ray_nodes)
    assert len({name for _, name in in_parallel(node, range(4), workers=2, backend="ray")}) == 2
    assert not ray.is_initialized()


@pytest.mark.ray
def test_ray_on_this_machine(tmp_path, monkeypatch, capfd, caplog):
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    caplog.set_level(logging.INFO)
    assert len({pid for _, (pid, _) in in_parallel(sleep, [Sleep(1.0)] * 2, workers=2, backend="ray")}) == 2
    assert not ray.is_initialized()
    assert "".join(capfd.readouterr()) == ""
    assert caplog.text == ""
    closes_early(tmp_path, workers=2, backend="ray")


@pytest.mark.ray
def test_ray_that_exits_is_an_error(monkeypatch):
    """So it does after two minutes at a port where something else listens."""
    monkeypatch.setattr(pytest.importorskip("ray"), "init", lambda *_, **__: sys.exit(15))
    with pytest.raises(InfluxError, match=r"no ray cluster that can be used at auto \(SystemExit: 15\)"):
        list(in_parallel(square, range(2), workers=2, backend="ray", cluster="auto"))


@pytest.mark.ray
def test_ray_cluster_that_cannot_be_used():
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    nobody_answers(workers=2, backend="ray")
    with pytest.raises(InfluxError, match=r"no ray cluster that can be used at nowhere \(\w+Error: .*leave retraining\.cluster out"):
        list(in_parallel(square, range(2), workers=2, backend="ray", cluster="nowhere"))
    empty = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        with pytest.raises(InfluxError, match="the ray cluster has no CPU: add a node"):
            list(in_parallel(square, range(2), workers=2, backend="ray", cluster=empty.address))
    finally:
        empty.shutdown()


@pytest.fixture
def dask_cluster():
    """Makes dask clusters of processes on this machine."""
    distributed = pytest.importorskip("distributed")
    made = []

    def make(**options):
        made.append(distributed.LocalCluster(dashboard_address="127.0.0.1:0", silence_logs=50, **{"threads_per_worker": 1, **options}))
        return made[-1].scheduler_address

    yield make
    for cluster in made:
        cluster.close()


@pytest.mark.dask
def test_dask_cluster(dask_cluster, monkeypatch, tmp_path):
    import dask

    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        where = {"workers": 2, "backend": "dask", "cluster": dask_cluster(n_workers=2)}
    assert len({pid for _, (pid, _) in in_parallel(sleep, [Sleep(1.0)] * 4, **where)}) == 2
    behaves(monkeypatch, tmp_path, **where)
    tells_of_a_missing_module(monkeypatch, **where)
    tells_of_a_killed_worker("dask process", **where)


@pytest.mark.dask
def test_dask_on_this_machine(tmp_path, capfd, caplog):
    pytest.importorskip("distributed")
    caplog.set_level(logging.INFO)
    assert len({pid for _, (pid, _) in in_parallel(sleep, [Sleep(1.0)] * 2, workers=2, backend="dask")}) == 2
    closes_early(tmp_path, workers=2, backend="dask")
    tells_of_a_killed_worker("dask process", workers=2, backend="dask")
    assert "".join(capfd.readouterr()) == ""
    assert caplog.text == ""


@pytest.mark.dask
def test_dask_cluster_that_cannot_be_used(dask_cluster, monkeypatch):
    call = functools.partial(in_parallel, square, range(2), workers=2, backend="dask")
    nobody_answers(workers=2, backend="dask")
    with pytest.raises(InfluxError, match=r"the dask workers at tcp.* run 2 calls at a time in one process.*--nthreads 1"):
        list(call(cluster=dask_cluster(n_workers=1, threads_per_worker=2)))
    monkeypatch.setattr(clusters, "PATIENCE", 1)
    with pytest.raises(InfluxError, match=r"no dask cluster that can be used at tcp.* \(\w*TimeoutError: .*leave retraining\.cluster out"):
        list(call(cluster=dask_cluster(n_workers=0)))
