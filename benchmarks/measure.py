"""How the benchmarks measure: pairs of runs, medians of their ratios, and the process's peak memory."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def paired(plain: Callable[[], object], ours: Callable[[], object], pairs: int = 3) -> tuple[float, float, float]:
    """Median seconds of each, and the median of the ratios plain / ours, run in turn so that a drift of the machine hits both."""
    runs = [(seconds(plain), seconds(ours)) for _ in range(pairs)]
    slow, fast = zip(*runs, strict=True)
    return statistics.median(slow), statistics.median(fast), statistics.median(s / f for s, f in runs)


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
