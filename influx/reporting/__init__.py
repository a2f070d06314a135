"""`influx report`: finished runs of any folders in one table, one figure and one HTML page. Nothing is trained.

Words are read here; what reads runs is imported when they are right.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from influx.errors import InfluxError, nearest
from influx.rule_kinds import FLAG, TEXT, Rule

USAGE = """influx report: join finished runs into one table, one figure and one HTML page

usage: influx report PATH... [key=value ...]

  PATH is the folder of a run, of a sweep or of a reproduction, as many as you like:
  influx report outputs/validate/sweeps/2026-11-23_10-00-00-000000
  influx report outputs/validate/runs/*

settings
  out=FOLDER       where report.html, summary.csv and summary.png go (outputs/report/<time>)
  title=TEXT       the page's heading
  examples=false   leave training and test examples out of the page, for example where they are private
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
    paths, settings = _read(words)
    out = Path(settings.get("out", f"outputs/report/{time.strftime('%Y-%m-%d_%H-%M-%S')}"))
    if out.exists() and not out.is_dir():
        raise InfluxError(f"out={out} is a file: choose a folder.")
    from influx.reporting.joining import join

    join(paths, out, str(settings.get("title", TITLE)), settings.get("examples", True))
    return 0


def _read(words: Sequence[str]) -> tuple[list[Path], dict[str, Any]]:
    """Folders and settings. A folder may have an = in its name, as those of sweeps can."""
    paths, settings = [], {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or (key not in RULES and Path(word).exists()):
            paths.append(Path(word))
            continue
        if key not in RULES:
            raise InfluxError(f"there is no key '{key}' here; there are {', '.join(RULES)}.{nearest(key, RULES)}")
        value = {"true": True, "false": False}.get(text, text) if RULES[key] is FLAG else text
        if not RULES[key].accepts(value):
            raise InfluxError(f"{word} is not possible: it must be {RULES[key].wanted}.")
        settings[key] = value
    if not paths:
        raise InfluxError("report needs a run folder or a sweep folder: influx report outputs/validate/sweeps/...")
    return paths, settings
