"""How the benchmarks measure: ways run in turn, medians of their ratios round by round, and peak memory. Tables come out as Markdown."""

from __future__ import annotations

import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Way = Callable[[], object]


def seconds(work: Way) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def in_turn(ways: Mapping[str, Way], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; the ways take turns, so that a drift of the machine hits all of them."""
    runs = [{name: seconds(work) for name, work in ways.items()} for _ in range(rounds)]
    return {name: [run[name] for run in runs] for name in ways}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median of slow / fast, round by round."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def paired(plain: Way, ours: Way, pairs: int = 3) -> tuple[float, float, float]:
    """Median seconds of each, and the median of the ratios plain / ours."""
    runs = in_turn({"plain": plain, "ours": ours}, pairs)
    return statistics.median(runs["plain"]), statistics.median(runs["ours"]), ratio(runs["plain"], runs["ours"])


def peak_mebibytes() -> float:
    """Of this process alone: `ru_maxrss` starts from what the parent held when it started this one."""
    status = Path("/proc/self/status")
    if not status.exists():
        scale = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    return _high_water(status)


def largest_child_mebibytes() -> float:
    """The highest peak among the children that live; 0 when there are none, or no /proc."""
    found = [status for task in Path("/proc/self/task").glob("*/children") for status in _children(task)]
    return max((_high_water(status) for status in found if status.exists()), default=0.0)


def _children(listing: Path) -> list[Path]:
    return [Path("/proc", child, "status") for child in listing.read_text().split()]


def _high_water(status: Path) -> float:
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines.get("VmHWM", "0 kB").split()[0]) / 1024


def row(*cells: object) -> None:
    """One row of a Markdown table, at once."""
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def header(*names: str) -> None:
    row(*names)
    print("|" + "---|" * len(names), flush=True)


def processor() -> str:
    """The processor's name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), "unknown")
