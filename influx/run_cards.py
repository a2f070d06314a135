"""What a notebook shows of a run or a sweep: a few lines of HTML that say what was asked, how it ended and what is there to be read."""

from __future__ import annotations

import html
import math
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

MOST_JOBS = 20  # rows of a sweep's card
LONGEST = 100  # characters of a status in it


def of_run(
    path: Path, status: str, words: Sequence[str], record: Mapping[str, Any], headline: pd.Series | None, files: Sequence[str]
) -> str:
    """A run's card: the command line, how it ended, its headline (a row of its table), its seconds, and where its tables are.

    `words` are the command and its overrides; `headline` has `statistic`, `value` and, where there are any, `ci_low` and `ci_high`.
    """
    choices = record.get("choices", {})
    chosen = ", ".join(f"{group} {choices[group]}" for group in ("dataset", "model", "training", "method") if group in choices)
    seconds = sum(record.get("stage_seconds", {}).values())
    rows = {
        "command": f"<code>influx {_escaped(shlex.join(words))}</code>",
        "status": _escaped(status) + (f", {seconds:.1f} s" if seconds else ""),
        "setting": _escaped(chosen),
        "result": _escaped(_said(headline)) if headline is not None else "",
        "warnings": "<br>".join(map(_escaped, record.get("warnings", []))),
        "tables": ", ".join(f"<code>{_escaped(name)}</code>" for name in files),
    }
    return _card(path, rows)


def of_sweep(path: Path, swept: pd.DataFrame, statuses: Mapping[int, str]) -> str:
    """A sweep's card: how many of its jobs finished, and what was asked of each and how it ended."""
    done = sum(status == "finished" for status in statuses.values())
    shown = list(statuses)[:MOST_JOBS]
    head = "".join(f"<th>{_escaped(name)}</th>" for name in ("job", *swept, "status"))
    cells = [[str(job), *map(_text, swept.loc[job]), textwrap.shorten(statuses[job], LONGEST, placeholder=" ...")] for job in shown]
    body = "".join(f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in row)}</tr>" for row in cells)
    more = f"<p>... and {len(statuses) - len(shown)} more in <code>.runs</code></p>" if len(shown) < len(statuses) else ""
    jobs = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
    return _card(path, {"status": f"{done} of {len(statuses)} jobs finished", "jobs": jobs})


def _said(row: pd.Series) -> str:
    interval = f" [{row['ci_low']:.3g}, {row['ci_high']:.3g}]" if {"ci_low", "ci_high"} <= {*row.index} else ""
    ceiling = row.get("noise_ceiling", math.nan)
    beside = f", noise ceiling {ceiling:.3g}" if not pd.isna(ceiling) else ""
    return f"{str(row['statistic']).replace('_', ' ')} {row['value']:.3g}{interval}{beside}"


def _card(path: Path, rows: Mapping[str, str]) -> str:
    left = 'style="text-align:left;vertical-align:top"'
    body = "".join(f"<tr><th {left}>{name}</th><td {left}>{cell}</td></tr>" for name, cell in rows.items() if cell)
    return f"<table><caption {left}><b>{_escaped(path.name)}</b></caption><tbody>{body}</tbody></table>"


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)


def _escaped(text: str) -> str:
    return html.escape(str(text))
