"""`influx report`: finished runs of any folders in one table, one figure and one HTML page. Nothing is trained.

Words are read here; what reads runs is imported when they are right.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from influx.errors import InfluxError
from influx.plain_settings import settings
from influx.rule_kinds import FLAG, TEXT, Rule

USAGE = """influx report: join finished runs into one table, one figure and one HTML page

usage: influx report PATH... [key=value ...]

  PATH is the folder of a run, of a sweep or of a reproduction, as many as you like:
  influx report outputs/validate/sweeps/2026-11-23_10-00-00-000000
  influx report outputs/validate/runs/*

settings
  out=FOLDER       where report.html, summary.csv and summary.png go (outputs/report/<time>)
  title=TEXT       the page's heading
  examples=false   no pictures, texts and features of examples, where those are private; positions and labels stay
"""

TITLE = "Can these influence estimates be trusted?"
RULES: dict[str, Rule] = {
    "out": Rule("a folder", lambda v: v not in ("", "null")),
    "title": TEXT,
    "examples": FLAG,
}


def command(words: Sequence[str]) -> int:
    """`influx report WORDS`; the exit status.

    Raises:
        InfluxError: a word, key or value that is not possible, a folder without a run, or no run that finished.
    """
    if {"-h", "--help"} & {*words}:
        print(USAGE, end="")
        return 0
    paths, chosen = _read(words)
    out = Path(chosen.get("out", f"outputs/report/{time.strftime('%Y-%m-%d_%H-%M-%S')}"))
    if out.exists() and not out.is_dir():
        raise InfluxError(f"out={out} is a file: choose a folder.")
    from influx.reporting.joining import join

    join(paths, out, str(chosen.get("title", TITLE)), chosen.get("examples", True))
    return 0


def _read(words: Sequence[str]) -> tuple[list[Path], dict[str, Any]]:
    """Folders and settings. A folder may have an = in its name, as those of sweeps can."""
    paths = [word for word in words if "=" not in word or (word.partition("=")[0] not in RULES and Path(word).exists())]
    chosen = settings([word for word in words if word not in paths], RULES)
    if not paths:
        raise InfluxError("report needs a run folder or a sweep folder: influx report outputs/validate/sweeps/...")
    return [Path(path) for path in paths], chosen
