"""`influx report`: finished runs of any folders in one table, one figure and one HTML page. Nothing is trained."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from influx import sweeps
from influx.errors import InfluxError, nearest
from influx.reporting.numbers import telling
from influx.reporting.page import page_of
from influx.reporting.runs import Reported, collect
from influx.rule_kinds import FLAG, TEXT, Rule
from influx.store import write_whole
from influx.sweep_seeds import over_seeds

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
    runs, commands = collect(paths)
    _make(out)
    write(runs, commands, out, str(settings.get("title", "Can these influence estimates be trusted?")), settings.get("examples", True))
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


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InfluxError(f"cannot write {out} ({error.strerror}): choose another folder with out=...") from error


def write(runs: Sequence[Reported], commands: Sequence[str], out: Path, title: str, examples: bool) -> None:
    """The three files, and a few lines that say what is in them."""
    table = summary(runs)
    ranked = sweeps.headline(table)
    write_whole(out / "summary.csv", table.to_csv(index=False).encode())
    picture = out / "summary.png"
    picture.unlink(missing_ok=True)
    compared = bool(ranked["value"].notna().any())
    if compared:
        known = telling(ranked)
        means = over_seeds(known)
        sweeps.draw(known if means is None else means, picture, sweeps.common([one.job for one in runs]))
    text, notes = page_of(runs, commands, table, ranked, title=title, examples=examples)
    write_whole(out / "report.html", text.encode())
    for one in runs:
        if not one.finished:
            print(f"run {one.number} ({one.folder}) {one.status}")
    for note in notes:
        print(note)
    done = sum(one.finished for one in runs)
    print(f"{done} of {len(runs)} runs finished; {len(table)} rows in {out / 'summary.csv'}")
    if not compared:
        print("no run compared an estimate with a truth: there is no summary.png")
    print(f"report: {out / 'report.html'} ({len(text.encode()) / 1e6:.1f} MB)")


def summary(runs: Sequence[Reported]) -> pd.DataFrame:
    """The rows of summary.csv: a sweep's, with the folder of each run. `attrs` has the runs' headlines."""
    table = sweeps.joined([one.job for one in runs])
    folders: Mapping[int, str] = {one.number: one.folder for one in runs}
    return table.assign(folder=table["job"].map(folders))
