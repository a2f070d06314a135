"""Finished runs of any folders brought together, for one table and one page.

A run is a folder, whatever it was part of: single runs and the jobs of sweeps are numbered through in the order in which they were named.
A setting that some runs were given on their command line and others had by default is looked up in the others' configuration, so that
runs made at different times can be compared.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from influx import run_files
from influx.errors import InfluxError
from influx.reporting.numbers import train_size
from influx.runs import Run, Sweep, load
from influx.sweep_jobs import Job
from influx.sweep_seeds import REPEATS

ELSEWHERE = ("store.dir", "threads", "pictures", "retraining.workers", "retraining.backend", "retraining.cluster")  # change no number
GROUPS = ("dataset", "model", "training", "objective", "measurement", "method", "retraining", "task")
PLAIN = ("command", "truth", "loo", "dtype", "test_points", "resamples")  # settings of no group worth a line


@dataclass(frozen=True)
class Reported:
    """One run of a report: its number, its folder as it was named, how it ended, and what was asked of it."""

    number: int
    run: Run
    status: str
    job: Job

    @property
    def folder(self) -> str:
        return str(self.run.path)

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def compared(self) -> bool:
        """Whether it compared an estimate with a truth, pair by pair."""
        table = self.job.table
        return table is not None and "statistic" in table and "score" not in table

    @property
    def record(self) -> dict[str, Any]:
        return self.job.record

    @property
    def in_python(self) -> bool:
        """Whether it was made by `influx.estimate` or `influx.validate`, with data and a model that no command line names."""
        return set(self.config.get("dataset") or ()) == {"own"}

    @property
    def words(self) -> str:
        """The command line that makes this run again with today's defaults."""
        command = self.record.get("command") or self.config.get("command") or "validate"
        if self.in_python:
            return f"influx.{command}(...) in Python"
        return f"influx {shlex.join([str(command), *self.given])}"

    @property
    def again(self) -> str:
        """The command that repeats this run with its own configuration."""
        if self.in_python:
            return "only in Python, with the data and model that it was given"
        return f"influx rerun {shlex.quote(self.folder)}"

    @property
    def given(self) -> list[str]:
        """What was typed, but for what changes no number."""
        try:
            return [word for word in self.run.overrides if word.partition("=")[0] not in ELSEWHERE]
        except InfluxError:  # a damaged folder: its status says so
            return []

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration; empty where it cannot be read."""
        try:
            return self.run.config
        except InfluxError:
            return {}

    def fresh(self) -> Run:
        """The same run with nothing read yet: what is read of it is forgotten with it."""
        return Run(self.run.path)


# ---------------------------------------------------------------------------------------------------------------- reading


def collect(paths: Sequence[Path]) -> tuple[list[Reported], list[str]]:
    """The runs of all folders, each once, and the command line behind each folder.

    Raises:
        InfluxError: a folder holds neither a run nor a sweep, or no run finished.
    """
    runs: dict[Path, Run] = {}
    commands = []
    for path in paths:
        found = load(path)
        members = found.runs if isinstance(found, Sweep) else (found,)
        new = {run.path.resolve(): run for run in members if run.path.resolve() not in runs}
        if new:
            one = _reported(0, next(iter(new.values())))
            commands.append(command_of(path, one) if isinstance(found, Sweep) else one.words)
        runs |= new
    reported = _with_defaults([_reported(number, run) for number, run in enumerate(runs.values())])
    if not any(one.finished for one in reported):
        first = f" The first: {reported[0].status}" if reported else ""
        places = ", ".join(map(str, paths))
        raise InfluxError(f"no run of {places} has finished, so there is nothing to report.{first}")
    return reported, commands


def _reported(number: int, run: Run) -> Reported:
    """A run that is damaged is one that did not finish."""
    record: dict[str, Any] = {}
    asked: dict[str, str] = {}
    tables: list[pd.DataFrame | None] = [None, None]
    try:
        record, status = run.record, run.status
        asked = {word.lstrip("+").partition("=")[0]: word.partition("=")[2].strip("'\"") for word in run.overrides}
        if status == "finished":
            names = Path(record.get("table", "correlations.csv")).stem, "curve"
            tables = [run.table(name) if name in run.tables else None for name in names]
    except InfluxError as error:
        status = f"damaged: {error}"
    return Reported(number, run, status, Job(number, asked, {**record, "status": status}, *tables))


def _with_defaults(runs: Sequence[Reported]) -> list[Reported]:
    """Every run with a value for each key that any of them was given, and for what else tells apart those that were given the same."""
    keys = list(dict.fromkeys(key for one in runs for key in one.job.asked if key not in ELSEWHERE))
    given = [{key: _as_number(one.job.asked[key] if key in one.job.asked else _by_default(one, key)) for key in keys} for one in runs]
    made = []
    for one, asked in zip(runs, _told_apart(runs, given), strict=True):
        job = Job(one.number, asked, one.job.record, one.job.table, one.job.curve)
        made.append(Reported(one.number, one.run, one.status, job))
    return made


def _told_apart(runs: Sequence[Reported], given: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """What runs were given, and each value that differs between finished runs which were given the same but for a seed: a setting's (a YAML
    was edited in between), that of the user's files and classes, of influx itself; and of a run made in Python, whose data no word names.
    """
    kinds = [{**{key: written(value) for key, value in leaves(one.config, classes=True)}, **_unnamed(one)} for one in runs]
    same: dict[tuple[str, ...], list[int]] = {}
    for at, asked in enumerate(given):
        if runs[at].finished:
            same.setdefault(tuple(value for key, value in asked.items() if key not in REPEATS), []).append(at)
    found: dict[str, None] = {}
    for together in same.values():
        names = dict.fromkeys(
            key for at in together for key in kinds[at] if key not in (*given[at], *REPEATS, *ELSEWHERE, "logger", "fresh")
        )
        found |= {key: None for key in names if len({kinds[at].get(key, "") for at in together}) > 1}
    return [{**asked, **{key: kind.get(key, "") for key in found}} for asked, kind in zip(given, kinds, strict=True)]


def _unnamed(one: Reported) -> dict[str, str]:
    """What a run depends on that its configuration does not say, as the first characters of a digest."""
    said = {"own files": str(one.record.get("surroundings", "")), "influx code": str(one.record.get("source", ""))}
    return {**{key: text[:8] for key, text in said.items()}, "run in Python": one.folder if one.in_python else ""}


def _by_default(one: Reported, key: str) -> str:
    """The value that a run had for a key that it was not given; empty when it has none."""
    if key in one.record.get("choices", {}):
        return str(one.record["choices"][key])
    return written(dict(leaves(one.config)).get(key, ""))


def _as_number(text: str) -> str:
    """A number in one way of writing it (`0`, `0.0` and `0e0` are the same setting); other texts as they are."""
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else repr(number)


def command_of(folder: Path, first: Reported) -> str:
    """What was typed for a sweep, from its `multirun.yaml`; where that does not say, what its `first` job was asked."""
    try:
        hydra = run_files.mapping(folder / "multirun.yaml")["hydra"]
        words = [str(word) for word in hydra["overrides"]["task"] if str(word).partition("=")[0] not in ELSEWHERE]
        return f"influx {shlex.join([str(hydra['job']['config_name']), '-m', *words])}"
    except (InfluxError, KeyError, TypeError):
        return first.words


# --------------------------------------------------------------------------------------------------------------- comparing


def leaves(config: Mapping[str, Any], prefix: str = "", *, classes: bool = False) -> Iterable[tuple[str, Any]]:
    """Dotted keys and their values, classes' names left out unless they are asked for."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.", classes=classes)
        elif key != "_target_" or classes:
            yield f"{prefix}{key}", value


def setting(runs: Sequence[Reported]) -> pd.DataFrame:
    """What the finished runs were made of: a row a group of settings, with what was `chosen` and the `settings` that are the same for all
    of them; a value that differs stands with all its values."""
    done = [one for one in runs if one.finished]
    rows = []
    for group in GROUPS:
        options = _values(one.record.get("choices", {}).get(group) for one in done)
        if not options or options == ["None"]:
            continue
        inside = [dict(leaves(one.config.get(group) or {})) for one in done]
        rows.append({"part": group, "chosen": ", ".join(options), "settings": _same(inside)})
    plain = [{key: one.config[key] for key in PLAIN if key in one.config} for one in done]
    seeds = _values(one.config.get("seed") for one in done)
    sizes = _values(_sizes(one) for one in done)
    if sizes:
        rows.insert(0, {"part": "sizes", "chosen": "", "settings": "; ".join(sizes)})
    rows.append({"part": "run", "chosen": f"seed {', '.join(seeds)}", "settings": _same(plain)})
    return pd.DataFrame(rows)


def _sizes(one: Reported) -> str | None:
    """How many examples there were, and how the truth was made; None where nothing was estimated."""
    n_train = train_size(one.run)
    if n_train is None:
        return None
    said = f"{one.record.get('choices', {}).get('dataset', 'data')}: {n_train} training examples"
    table = one.job.table
    if table is not None and {"n_removed", "n_test", "n_seeds"} <= {*table}:
        row = table.iloc[0]
        said += f", {row['n_test']} test examples; {row['n_removed']} removals, {row['n_seeds']} retraining seeds"
    return said


def versions(runs: Sequence[Reported]) -> dict[str, str]:
    """Software and machine of the finished runs, each with its value, or its values and how many runs have each."""
    done = [one.record for one in runs if one.finished]
    rows = [{**record.get("versions", {}), **{key: record.get(key) for key in ("git_commit", "device", "threads")}} for record in done]
    made = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        counts = pd.Series([str(row[key]) for row in rows if row.get(key) is not None]).value_counts()
        if len(counts):
            one = len(counts) == 1
            made[key.replace("_", " ")] = str(counts.index[0]) if one else ", ".join(f"{value} ({n} runs)" for value, n in counts.items())
    return made


def _same(parts: Sequence[Mapping[str, Any]]) -> str:
    """`lr 0.05, epochs 30`: keys with the value that all parts have; `damping 0.1 | 1` where they differ."""
    keys = dict.fromkeys(key for part in parts for key in part)
    said = {key: _values(part.get(key) for part in parts) for key in keys}
    return ", ".join(f"{key} {' | '.join(values)}" for key, values in said.items() if values)


def _values(found: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(written(value) for value in found if value is not None))


def written(value: Any) -> str:
    """A value as the command line has it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return json.dumps(value) if isinstance(value, list | dict) else str(value)
