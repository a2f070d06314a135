"""Finished runs of any folders joined: summary.csv, summary.png and report.html, and a few lines that say what is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from influx import sweeps
from influx.errors import InfluxError
from influx.reporting.numbers import telling
from influx.reporting.page import page_of
from influx.reporting.runs import Reported, collect
from influx.store import write_whole
from influx.sweep_seeds import over_seeds


def join(paths: Sequence[Path], out: Path, title: str, examples: bool) -> None:
    """Write the three files into `out`, and print a few lines that say what is in them.

    Raises:
        InfluxError: a folder holds no run, no run finished, or `out` cannot be written to.
    """
    runs, commands = collect(paths)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InfluxError(f"cannot write {out} ({error.strerror}): choose another folder with out=...") from error
    table = summary(runs)
    ranked = sweeps.headline(table)
    text, notes = page_of(runs, commands, table, ranked, title=title, examples=examples)
    write_whole(out / "summary.csv", table.to_csv(index=False).encode())
    picture = out / "summary.png"
    picture.unlink(missing_ok=True)
    compared = bool(ranked["value"].notna().any())
    if compared:
        known = telling(ranked)
        means = over_seeds(known)
        sweeps.draw(known if means is None else means, picture, sweeps.common([one.job for one in runs]))
    write_whole(out / "report.html", text.encode())
    for reason in dict.fromkeys(one.status for one in runs if not one.finished):
        ended = [one for one in runs if one.status == reason]
        numbers = ", ".join(str(one.number) for one in ended)
        print(f"run{'s' if len(ended) > 1 else ''} {numbers} ({ended[0].folder}{', ...' if len(ended) > 1 else ''}) {reason}")
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
