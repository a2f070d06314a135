"""How much memory work may take, and how much it took."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse(size: str | int) -> int:
    """Bytes of "2GiB", "500 MB" or a plain number of bytes; `ValueError` for anything else, and for less than a mebibyte."""
    found = SIZE.fullmatch(str(size))
    if found is None or found[2].upper() not in UNITS:
        raise ValueError(f"{size} is no size")
    number = int(float(found[1]) * UNITS[found[2].upper()])
    if number < 2**20:
        raise ValueError(f"{size} is less than 1MiB")
    return number


def shown(number: float) -> str:
    """Bytes as one would say them."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 2**10:.3g} KiB"


class Peak:
    """The highest memory of this process between making it and `mebibytes()`, on CUDA the highest of what torch allocated there.

    On Linux the kernel's own high-water mark, set back first where that is allowed; elsewhere the process's whole life counts.
    """

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        if cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def nbytes(self) -> int:
        if self.cuda:
            import torch

            return int(torch.cuda.max_memory_allocated())
        status = Path("/proc/self/status")
        if not status.exists():
            import resource
            import sys

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 2**10
