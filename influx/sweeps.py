"""What a sweep's jobs say together: one table, one figure.

A sweep folder holds a folder a job. Of each are read what it was asked (`.hydra/overrides.yaml`), how it ended (`run.json`) and, if it has
a table of statistics, that (`correlations.csv`, or a task's). Written beside them: `summary.csv` (a row a job and statistic, a column a
swept key), `summary.md` (the headline, ranked) and `summary.png`. A job that failed has a row with the reason, and no value.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from influx.report.heat_grid import save_grid
from influx.report.ranking import save_lines, save_ranking
from influx.report.saving import formats
from influx.report.tables import interval, significant, to_markdown
from influx.store import write_whole
from influx.sweep_jobs import SPEARMAN, Job, read
from influx.sweep_scores import Scores, is_of_method, once, rows
from influx.sweep_scores import draw as draw_scores
from influx.sweep_seeds import REPEATS, left_out, over_seeds, shared_seeds

IDENTITY = ("method", "truth", "measurement")  # of a row of correlations.csv
NUMBERS = ["value", "ci_low", "ci_high", "noise_ceiling", "ceiling_low", "ceiling_high", "corrected"]
NAMES = {"spearman": "Spearman", "roc_auc": "ROC AUC"}
MOST_PANELS, MOST_LINES, MOST_ROWS = 9, 5, 60  # that a figure can show
WIDE = 50.0  # ratio of a swept number's largest to smallest value from which its axis is logarithmic
SAID = 10  # jobs and values that a line names
COUNTED = {"n_removed": "removals", "n_test": "test examples", "n_seeds": "retraining seeds"}
WIDTH = 120  # of the screen's table in a log


def join(folder: Path) -> int:
    """Write the summary of the sweep in `folder` and print its headline; nothing when there is no job. How many jobs are not finished."""
    jobs = read(folder)
    if not jobs:
        return 0
    table = joined(jobs)
    ranked = headline(table)
    averaged = over_seeds(ranked)
    write_whole(folder / "summary.csv", table.to_csv(index=False).encode())
    write_whole(folder / "summary.md", _markdown(folder, ranked, averaged).encode())
    for old in ("summary.png", "summary.pdf", "summary.svg"):  # of an earlier sweep in the same folder
        (folder / old).unlink(missing_ok=True)
    if _compared(ranked):
        with formats(yaml.safe_load(jobs[0].asked.get("pictures", "true"))):
            _picture(jobs, ranked, averaged, folder / "summary.png")
    screen = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    with screen.capture() as shown:  # rich itself would end the process where a reader stops early
        screen.print(lines(ranked if averaged is None else averaged))
    print(shown.get(), end="")
    if averaged is not None:
        print("\n".join(_about_seeds(ranked, averaged)))
    print("\n".join(failures(ranked)), end="\n" if failures(ranked) else "")
    print(f"summary: {folder / 'summary.csv'}")
    return sum(job.status != "finished" for job in jobs)


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


def scored(jobs: list[Job]) -> dict[int, tuple[Scores, tuple[str, ...]]]:
    """Of a task's jobs, by number: the scores, and which of them stand for the job."""
    places = [key for key in swept(jobs) if not is_of_method(key)]
    found = {
        job.number: Scores(job.record["choices"]["method"], tuple(job.asked.get(key, "") for key in places), job.table, job.curve)
        for job in jobs
        if job.table is not None and "score" in job.table
    }
    return dict(zip(found, zip(found.values(), once(list(found.values())), strict=True), strict=True))


def joined(jobs: list[Job]) -> pd.DataFrame:
    """A row a job and statistic; a job without a table has one row, with its status. A task's job has rows for baselines too, those that
    no other job has. `attrs` has the jobs' headlines."""
    keys = swept(jobs)
    tasks = scored(jobs)
    parts = []
    for job in jobs:
        asked = {key: job.asked.get(key, "") for key in keys}
        part = job.table
        if job.number in tasks:
            part = rows(*tasks[job.number], job.record["choices"])
        if part is None:
            choices = job.record.get("choices", {})
            chosen = {key: choices[key] for key in ("method", "measurement") if "method" in choices and key in choices}
            part = pd.DataFrame([{**chosen, **asked}])
        missing = {key: value for key, value in asked.items() if key not in part}
        part = part.assign(job=job.number, seconds=job.seconds, status=job.status, **missing)
        if job.number in tasks:
            part.loc[part["baseline"], [key for key in missing if is_of_method(key)]] = ""
            part.loc[part["baseline"], "seconds"] = math.nan
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table = table.astype({name: "Int64" for name in table if str(name).startswith("n_")})  # a failed job counts nothing
    first = ["job", *keys, *(name for name in (*IDENTITY, "statistic") if name in table and name not in keys)]
    last = ["seconds", "status"]
    table = table[[*first, *(name for name in table if name not in (*first, *last)), *last]]
    table.attrs["headlines"] = {job.number: job.headline for job in jobs}
    return table


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """One row a job (and baseline): by their headline, best first, then those without one, in their order. `attrs` has the columns that
    tell jobs apart, and the headline, if it is one for all."""
    table = table if "statistic" in table else table.assign(statistic=None)
    headlines = table.attrs.get("headlines", {})
    wanted = table["job"].map(lambda number: headlines.get(number, SPEARMAN)["statistic"])
    chosen = table[(table["statistic"] == wanted) | table["statistic"].isna()]
    chosen = chosen.reindex(columns=[*chosen.columns, *(name for name in NUMBERS if name not in chosen)])
    ranked = chosen.sort_values("value", ascending=False, kind="stable", na_position="last").reset_index(drop=True)
    columns = list(table.columns)
    end = next(at for at, name in enumerate(columns) if name in ("statistic", "seconds"))
    varied = [name for name in columns[1:end] if table[name].nunique() > 1]
    known = [headlines.get(number, SPEARMAN) for number in ranked.loc[ranked["value"].notna(), "job"]]
    same = len({said["statistic"] for said in known}) <= 1
    ranked.attrs = {
        "keys": varied or [name for name in columns[1:end] if name == "method"],
        "headline": (known[0] if known else SPEARMAN) if same else {"statistic": "value", "label": "each job's own headline"},
        "counts": _counts(ranked[ranked["value"].notna()]),
    }
    return ranked


# ---------------------------------------------------------------------------------------------------------------- showing


def lines(ranked: pd.DataFrame) -> Table:
    """The terminal's view of the jobs that finished."""
    view = Table(title=f"jobs by {_name(ranked)}" if _compared(ranked) else "jobs", title_justify="left")
    for heading in _shown(ranked):
        word = heading in ranked.attrs["keys"]
        view.add_column(heading, justify="left" if word else "right", overflow="fold", no_wrap=not word)
    for row in _cells(ranked):
        view.add_row(*map(Text, row))
    return view


def failures(ranked: pd.DataFrame) -> list[str]:
    """The jobs that did not finish: their numbers, what they were asked, and why; each reason once."""
    return [_failed(part, ranked.attrs["keys"]) for _, part in ranked[ranked["status"] != "finished"].groupby("status", sort=False)]


def _failed(part: pd.DataFrame, keys: list[str]) -> str:
    """A line for the jobs that ended for one reason."""
    numbers = sorted(dict.fromkeys(part["job"]))
    values = {key: list(dict.fromkeys(map(_text, part[key]))) for key in keys}
    asked = ", ".join(f"{key}={'|'.join(found[:SAID])}{'|...' if len(found) > SAID else ''}" for key, found in values.items())
    more = "s" if len(numbers) > 1 else ""
    return f"job{more} {', '.join(map(str, numbers[:SAID]))}{', ...' if len(numbers) > SAID else ''} ({asked}) {part['status'].iloc[0]}"


def _counts(table: pd.DataFrame) -> list[str]:
    """How much the values rest on: `50 removals, 30 to 114 test examples, 4 retraining seeds`."""
    known = {name: table[name].dropna().astype(int) for name in COUNTED if name in table}
    spans = {name: dict.fromkeys([found.min(), found.max()]) for name, found in known.items() if len(found)}
    said = ", ".join(f"{' to '.join(map(str, span))} {COUNTED[name]}" for name, span in spans.items())
    return [said] if said else []


def _repeated(averaged: pd.DataFrame) -> str:
    """What a mean over jobs is a mean of."""
    counts = sorted(set(averaged["n_jobs"]))
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"means over {number} jobs that differ in {', '.join(averaged.attrs['repeated'])} alone, 95 % t-intervals over them"


def _about_seeds(ranked: pd.DataFrame, averaged: pd.DataFrame) -> list[str]:
    said = _repeated(averaged)
    return [f"{said[0].upper()}{said[1:]}.", *filter(None, [shared_seeds(ranked), *left_out(averaged)])]


def _markdown(folder: Path, ranked: pd.DataFrame, averaged: pd.DataFrame | None) -> str:
    table = pd.DataFrame(_cells(ranked), columns=_shown(ranked))
    done = ranked.loc[ranked["status"] == "finished", "job"].nunique()
    note = "Spearman: mean over test examples of the rank correlation with the truth. All statistics: summary.csv.\n"
    if ranked.attrs["headline"] != SPEARMAN:
        note = f"{_name(ranked)}: {ranked.attrs['headline']['label']}. Rows without a job are baselines. All statistics: summary.csv.\n"
    failed = "".join(f"\n- {line}" for line in failures(ranked))
    parts = [
        f"# Sweep {folder.name}\n",
        f"{done} of {ranked['job'].nunique()} jobs finished.",
        note if _compared(ranked) else "",
    ]
    if averaged is not None:
        means = pd.DataFrame(_cells(averaged), columns=_shown(averaged))
        parts += ["\n".join(_about_seeds(ranked, averaged)) + "\n", to_markdown(means), "\n## Every job\n"]
    parts.append(to_markdown(table))
    return "\n".join(part for part in parts if part) + (f"\n## Failed\n{failed}\n" if failed else "")


def _compared(ranked: pd.DataFrame) -> bool:
    return bool(ranked["value"].notna().any())


def _name(ranked: pd.DataFrame) -> str:
    return name_of(ranked.attrs["headline"]["statistic"])


def name_of(statistic: str) -> str:
    """A statistic as people write it."""
    return NAMES.get(statistic, statistic.replace("_", " "))


def _shown(ranked: pd.DataFrame) -> list[str]:
    correlations = ["noise ceiling", "corrected"] if ranked.attrs["headline"] == SPEARMAN else []
    first = "jobs" if "n_jobs" in ranked else "job"
    return [first, *ranked.attrs["keys"], *([_name(ranked), "95 % interval", *correlations] if _compared(ranked) else []), "seconds"]


def _cells(ranked: pd.DataFrame) -> list[list[str]]:
    """Of the jobs that finished."""
    compared, made = _compared(ranked), []
    done = ranked[ranked["status"] == "finished"]
    for named, row in zip(done.to_dict("records"), done.itertuples(), strict=True):
        keys = [_text(named[key]) for key in ranked.attrs["keys"]]
        numbers = [significant(row.value), interval(row)] if compared else []
        if compared and ranked.attrs["headline"] == SPEARMAN:
            numbers += [significant(row.noise_ceiling), significant(row.corrected)]
        job = named.get("n_jobs", named["job"])
        made.append(["" if named.get("baseline") is True else str(job), *keys, *numbers, significant(row.seconds)])
    return made


def _picture(jobs: list[Job], ranked: pd.DataFrame, averaged: pd.DataFrame | None, path: Path) -> None:
    """Of a task's jobs that differ in their method alone: their curves as well. Of repeated jobs: their means."""
    about, tasks = common(jobs), scored(jobs)
    if tasks and all(map(is_of_method, ranked.attrs["keys"])):
        done = ranked[ranked["value"].notna()]
        done = done.assign(label=[_label(row, ranked.attrs["keys"]) for row in done.to_dict("records")])
        labels = dict(done[["job", "label"]][done["baseline"] != True].to_numpy())  # noqa: E712  (NaN is neither)
        parts = [(job, scores, labels[number]) for number, (job, scores) in tasks.items()]
        if draw_scores(parts, done, path, f"{about}: {ranked.attrs['headline']['label']}"):
            return
    draw(ranked if averaged is None else averaged, path, about)


def _label(row: Mapping[str, Any], keys: list[str]) -> str:
    """The method, then its settings; a baseline has none."""
    return ", ".join(_text(row[key]) for key in sorted(keys) if _text(row[key]))


def draw(ranked: pd.DataFrame, path: Path, about: str) -> None:
    """A line along a swept number where one was swept; else the jobs ranked, a panel for each combination of what was swept beside the
    method."""
    keys: list[str] = ranked.attrs["keys"]
    said = ranked.attrs.get("headline", SPEARMAN)
    what = "agreement with the truth" if said == SPEARMAN else said["label"]
    title, ceilings = f"{about}: {what}" if about else what, said == SPEARMAN
    beside = [*ranked.attrs.get("counts", ()), *([_repeated(ranked)] if "n_jobs" in ranked else ())]
    title += f" ({'; '.join(beside)})" if beside else ""
    table = ranked.assign(**{key: ranked[key].map(_text) for key in keys})
    numeric = [key for key in keys if key not in (*REPEATS, *IDENTITY) and pd.to_numeric(table[key], errors="coerce").notna().all()]
    others = [key for key in keys if key not in numeric]
    if len(numeric) == 1 and len(_labels(table, others).unique()) <= MOST_LINES:
        at = pd.to_numeric(table[numeric[0]])
        logarithmic = bool(at.min() > 0 and at.max() >= WIDE * at.min())
        table = table.assign(at=at, label=_labels(table, others))
        save_lines(table, path, statistic=said["label"], key=numeric[0], logarithmic=logarithmic, title=title, ceilings=ceilings)
        return
    if len(numeric) == 2 and len(_labels(table, others).unique()) <= MOST_PANELS and not table.duplicated(keys).any():
        first, second = numeric
        table = table.assign(x=pd.to_numeric(table[first]), y=pd.to_numeric(table[second]), panel=_labels(table, others))
        save_grid(table, path, statistic=said["label"], names=(first, second), title=title)
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
    save_ranking(table, path, statistic=said["label"], title=title, ceilings=ceilings)


def _labels(table: pd.DataFrame, keys: list[str]) -> pd.Series:
    """What tells rows apart, in words; a single key's value says enough."""
    if len(keys) == 1:
        return table[keys[0]].astype(str)
    return pd.Series([", ".join(f"{key}={row[key]}" for key in keys) for row in table.to_dict("records")], index=table.index, dtype=str)


def _text(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)
