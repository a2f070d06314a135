"""Retraining: ratios against the plain ways, as Markdown tables.

    python benchmarks/retraining.py [sgd] [stack] [workers] [command] [optimum] [--quick]

One part alone runs here; several (all, when none is named) each in a process of their own, so that each has its own peak memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib import import_module

PARTS = {  # part: module, title
    "sgd": ("side_by_side", "Leave-one-out by stochastic gradient"),
    "stack": ("side_by_side", "Models in a stack"),
    "workers": ("processes", "Threads and workers"),
    "command": ("processes", "Whole commands"),
    "optimum": ("optimum", "Leave-one-out optima"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"any of {', '.join(PARTS)}; none means all")
    parser.add_argument("--quick", action="store_true", help="few epochs and models: shows that all runs, not how fast")
    options = parser.parse_args()
    strangers = set(options.parts) - set(PARTS)
    if strangers:
        parser.error(f"no such part: {', '.join(sorted(strangers))}; there are {', '.join(PARTS)}")
    if len(options.parts) == 1:
        run(options.parts[0], options.quick)
        return
    for part in options.parts or PARTS:
        subprocess.run([sys.executable, __file__, part, *(["--quick"] if options.quick else [])], check=True)


def run(part: str, quick: bool) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and NumPy are imported
    module, title = PARTS[part]
    print(f"\n### {title}\n", flush=True)
    getattr(import_module(module), part)(quick)
    print(f"\nPeak memory {import_module('measure').peak_mebibytes():.0f} MiB.", flush=True)


if __name__ == "__main__":
    main()
