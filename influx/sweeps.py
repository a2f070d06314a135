"""What a sweep's jobs say together: one table, one figure.

A sweep folder holds a folder a job. Of each are read what it was asked (`.hydra/overrides.yaml`), how it ended (`run.json`) and, if it has
been compared with the truth, `correlations.csv`. Written beside them: `summary.csv` (a row a job and statistic, a column a swept key),
`summary.md` (the headline, ranked) and `summary.png`. A job that failed has a row with the reason, and no value.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from influx.report.ranking import save_lines, save_ranking
from influx.report.tables import interval, significant, to_markdown
from influx.store import write_whole

HEADLINE = "spearman"
AXIS = "Spearman (mean over test examples)"
IDENTITY = ("method", "truth", "measurement")  # of a row of correlations.csv
NUMBERS = ["value", "ci_low", "ci_high", "noise_ceiling", "ceiling_low", "ceiling_high", "corrected"]
MOST_PANELS, MOST_LINES, MOST_ROWS = 9, 5, 60  # that a figure can show
WIDE = 50.0  # ratio of a swept number's largest to smallest value from which its axis is logarithmic
WIDTH = 120  # of the screen's table in a log


@dataclass(frozen=True)
class Job:
    """One job: its number, what it was asked (key to value, as text), how it ended, and its rows of correlations.csv, if it has any."""

    number: int
    asked: dict[str, str]
    record: dict[str, Any]
    correlations: pd.DataFrame | None

    @property
    def status(self) -> str:
        """`finished`, or one line that says why not."""
        said = str(self.record.get("status", "failed: it ended before it began (no run.json)"))
        return "failed: it was stopped" if said == "running" else said.strip().splitlines()[0]

    @property
    def seconds(self) -> float:
        """Of the estimate, or of training where nothing was estimated."""
        stages = self.record.get("stage_seconds", {})
        return float(stages.get("estimate", stages.get("train", math.nan)))


def note_failure(folder: Path, error: Exception) -> None:
    """Leave the reason in the folder of a job that was refused before it began."""
    record, asked = folder / "run.json", folder / ".hydra" / "overrides.yaml"
    if asked.is_file() and not _newer(record, asked):
        said = {"status": f"failed: {str(error).strip().splitlines()[0]}"}
        write_whole(record, (json.dumps(said, indent=2) + "\n").encode())


def join(folder: Path) -> None:
    """Write the summary of the sweep in `folder` and print its headline; nothing when there is no job."""
    jobs = read(folder)
    if not jobs:
        return
    table = joined(jobs)
    ranked = headline(table)
    write_whole(folder / "summary.csv", table.to_csv(index=False).encode())
    write_whole(folder / "summary.md", _markdown(folder, ranked).encode())
    (folder / "summary.png").unlink(missing_ok=True)  # of an earlier sweep in the same folder
    if _compared(ranked):
        draw(ranked, folder / "summary.png", common(jobs))
    Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False).print(lines(ranked))
    print("\n".join(failures(ranked)), end="\n" if failures(ranked) else "")
    print(f"summary: {folder / 'summary.csv'}")


# ---------------------------------------------------------------------------------------------------------------- reading


def read(folder: Path) -> list[Job]:
    """The jobs of a sweep by number. What an earlier sweep left in the same folder is not among them."""
    begun = folder / "multirun.yaml"
    asked = [file for file in folder.rglob(".hydra/overrides.yaml") if _newer(file, begun)]
    return sorted((_job(file) for file in asked), key=lambda job: job.number)


def _job(asked: Path) -> Job:
    folder = asked.parent.parent
    words = yaml.safe_load(asked.read_text()) or []
    settings = dict(str(word).lstrip("+").partition("=")[::2] for word in words)
    record: dict[str, Any] = {}
    if _newer(folder / "run.json", asked):
        record = json.loads((folder / "run.json").read_text())
    made, table = folder / "correlations.csv", None
    if record.get("status") == "finished" and made.is_file():
        table = pd.read_csv(made)
    return Job(_number(folder), {key: value.strip("'\"") for key, value in settings.items()}, record, table)


def _number(folder: Path) -> int:
    said = folder / ".hydra" / "hydra.yaml"
    number = yaml.safe_load(said.read_text())["hydra"]["job"]["num"] if said.is_file() else None
    return number if isinstance(number, int) else int(folder.name)


def _newer(file: Path, than: Path) -> bool:
    return file.is_file() and (not than.is_file() or file.stat().st_mtime_ns >= than.stat().st_mtime_ns)


# ---------------------------------------------------------------------------------------------------------------- joining


def swept(jobs: list[Job]) -> list[str]:
    """The keys whose value is not the same for all jobs, in the order of the command line."""
    keys = dict.fromkeys(key for job in jobs for key in job.asked)
    return [key for key in keys if len({job.asked.get(key) for job in jobs}) > 1]


def common(jobs: list[Job]) -> str:
    """Data set, model and measurement, those that are the same for all jobs that say so."""
    said = [job.record["choices"] for job in jobs if "choices" in job.record]
    chosen = [{str(choices.get(group)) for choices in said} for group in ("dataset", "model", "measurement")]
    return ", ".join(values.pop() for values in chosen if len(values) == 1)


def joined(jobs: list[Job]) -> pd.DataFrame:
    """A row a job and statistic; a job without correlations has one row, with its status."""
    keys = swept(jobs)
    parts = []
    for job in jobs:
        asked = {key: job.asked.get(key, "") for key in keys}
        part = job.correlations
        if part is None:
            choices = job.record.get("choices", {})
            chosen = {key: choices[key] for key in ("method", "measurement") if "method" in choices and key in choices}
            part = pd.DataFrame([{**chosen, **asked}])
        missing = {key: value for key, value in asked.items() if key not in part}
        parts.append(part.assign(job=job.number, seconds=job.seconds, status=job.status, **missing))
    table = pd.concat(parts, ignore_index=True)
    table = table.astype({name: "Int64" for name in table if str(name).startswith("n_")})  # a failed job counts nothing
    first = ["job", *keys, *(name for name in (*IDENTITY, "statistic") if name in table and name not in keys)]
    last = ["seconds", "status"]
    return table[[*first, *(name for name in table if name not in (*first, *last)), *last]]


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """One row a job: the jobs by Spearman, best first, then those without one, in their order. `attrs["keys"]` are the columns that tell
    jobs apart."""
    table = table if "statistic" in table else table.assign(statistic=None)
    rows = table[(table["statistic"] == HEADLINE) | table["statistic"].isna()]
    rows = rows.reindex(columns=[*rows.columns, *(name for name in NUMBERS if name not in rows)])
    ranked = rows.sort_values("value", ascending=False, kind="stable", na_position="last").reset_index(drop=True)
    columns = list(table.columns)
    end = next(at for at, name in enumerate(columns) if name in ("statistic", "seconds"))
    varied = [name for name in columns[1:end] if table[name].nunique() > 1]
    ranked.attrs["keys"] = varied or [name for name in columns[1:end] if name == "method"]
    return ranked


# ---------------------------------------------------------------------------------------------------------------- showing


def lines(ranked: pd.DataFrame) -> Table:
    """The terminal's view of the jobs that finished."""
    view = Table(title="jobs by Spearman" if _compared(ranked) else "jobs", title_justify="left")
    for heading in _shown(ranked):
        word = heading in ranked.attrs["keys"]
        view.add_column(heading, justify="left" if word else "right", overflow="fold", no_wrap=not word)
    for row in _cells(ranked):
        view.add_row(*map(Text, row))
    return view


def failures(ranked: pd.DataFrame) -> list[str]:
    """A line for each job that did not finish: its number, what it was asked, and why."""
    failed = ranked[ranked["status"] != "finished"]
    return [
        f"job {row['job']} ({', '.join(f'{key}={_text(row[key])}' for key in ranked.attrs['keys'])}) {row['status']}"
        for row in failed.to_dict("records")
    ]


def _markdown(folder: Path, ranked: pd.DataFrame) -> str:
    table = pd.DataFrame(_cells(ranked), columns=_shown(ranked))
    note = "Spearman: mean over test examples of the rank correlation with the truth. All statistics: summary.csv.\n"
    failed = "".join(f"\n- {line}" for line in failures(ranked))
    parts = [
        f"# Sweep {folder.name}\n",
        f"{len(table)} of {len(ranked)} jobs finished.",
        note if _compared(ranked) else "",
        to_markdown(table),
    ]
    return "\n".join(part for part in parts if part) + (f"\n## Failed\n{failed}\n" if failed else "")


def _compared(ranked: pd.DataFrame) -> bool:
    return bool(ranked["value"].notna().any())


def _shown(ranked: pd.DataFrame) -> list[str]:
    return [
        "job",
        *ranked.attrs["keys"],
        *(["Spearman", "95 % interval", "noise ceiling", "corrected"] if _compared(ranked) else []),
        "seconds",
    ]


def _cells(ranked: pd.DataFrame) -> list[list[str]]:
    """Of the jobs that finished."""
    compared, made = _compared(ranked), []
    done = ranked[ranked["status"] == "finished"]
    for named, row in zip(done.to_dict("records"), done.itertuples(), strict=True):
        keys = [_text(named[key]) for key in ranked.attrs["keys"]]
        numbers = [significant(row.value), interval(row), significant(row.noise_ceiling), significant(row.corrected)] if compared else []
        made.append([str(row.job), *keys, *numbers, significant(row.seconds)])
    return made


def draw(ranked: pd.DataFrame, path: Path, about: str) -> None:
    """A line along a swept number where one was swept; else the jobs ranked, a panel for each combination of what was swept beside the
    method."""
    keys: list[str] = ranked.attrs["keys"]
    title = f"{about}: agreement with the truth" if about else "agreement with the truth"
    table = ranked.assign(**{key: ranked[key].map(_text) for key in keys})
    numeric = [key for key in keys if key not in ("seed", *IDENTITY) and pd.to_numeric(table[key], errors="coerce").notna().all()]
    others = [key for key in keys if key not in numeric]
    if len(numeric) == 1 and len(_labels(table, others).unique()) <= MOST_LINES:
        at = pd.to_numeric(table[numeric[0]])
        logarithmic = bool(at.min() > 0 and at.max() >= WIDE * at.min())
        table = table.assign(at=at, label=_labels(table, others))
        save_lines(table, path, statistic=AXIS, key=numeric[0], logarithmic=logarithmic, title=title)
        return
    rest = [key for key in keys if key != "method"]
    panel = _labels(table, rest)
    if "method" in keys and len(panel.unique()) <= MOST_PANELS:
        table = table.assign(panel=panel, label=table["method"])
    else:
        table = table.assign(panel="", label=_labels(table, keys))
    if len(table) > MOST_ROWS and table["panel"].nunique() == 1:
        title += f" (the best {MOST_ROWS} of {len(table)} jobs)"
        table = table.head(MOST_ROWS)
    save_ranking(table, path, statistic=AXIS, title=title)


def _labels(table: pd.DataFrame, keys: list[str]) -> pd.Series:
    """What tells rows apart, in words; a single key's value says enough."""
    if len(keys) == 1:
        return table[keys[0]].astype(str)
    return pd.Series([", ".join(f"{key}={row[key]}" for key in keys) for row in table.to_dict("records")], index=table.index, dtype=str)


def _text(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)
