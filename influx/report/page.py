"""The page of a reproduction: one HTML file that needs no network, with every study's claims, figure and explanations."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from influx.report.tables import significant

MARKS = {"reproduced": "✓", "not reproduced": "✗", "inconclusive": "?"}

STYLE = """
:root { color-scheme: light dark; --line: #ccc; --soft: #f5f5f5; --good: #00664a; --bad: #a63c00; --open: #5b4a8a; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --soft: #222; --good: #5fd0a8; --bad: #ff9a62; --open: #b9a8ee; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { border-top: 1px solid var(--line); font-size: 1.3rem; margin-top: 2.5rem; padding-top: 1.5rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .4rem .6rem; text-align: left; vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; text-align: right; white-space: nowrap; }
td.verdict { font-weight: 600; white-space: nowrap; }
.reproduced { color: var(--good); } .not-reproduced { color: var(--bad); } .inconclusive { color: var(--open); }
img { background: white; height: auto; max-width: 100%; } code { background: var(--soft); padding: .1rem .3rem; }
.note { background: var(--soft); border-left: 4px solid var(--line); margin: .5rem 0; padding: .5rem 1rem; }
"""


@dataclass(frozen=True)
class StudyPage:
    """One study's part of the page. `claims` has the columns of claims.csv; `failed` are jobs without a result, with the reason; `own` are
    settings that the user added to the study's."""

    name: str
    title: str
    papers: tuple[str, ...]
    shows: str
    scale: str
    cuts: str
    claims: pd.DataFrame
    picture: Path
    failed: tuple[tuple[str, str], ...]
    command: str
    n_seeds: int
    own: tuple[str, ...] = ()


def page_of(studies: Sequence[StudyPage]) -> str:
    """The page, the figures inside it."""
    everything = pd.concat([study.claims for study in studies])
    counts = ", ".join(f"{(everything['verdict'] == verdict).sum()} {verdict}" for verdict in MARKS)
    links = "".join(f'<li><a href="#{study.name}">{html.escape(study.title)}</a>: {_marked(study.claims)}</li>' for study in studies)
    body = "\n".join(map(_study, studies))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>influx reproduce</title><style>{STYLE}</style></head><body><main>\n<h1>Which claims reproduce?</h1>\n"
        f"<p>{len(everything)} claims: {counts}.</p><ul>{links}</ul>\n"
        "<p>A claim is <em>reproduced</em> when the whole 95 % interval over seeds meets its threshold, <em>not reproduced</em> when none "
        "of it does, else <em>inconclusive</em>: more seeds would tell. A claim about several settings shows the one nearest to failing. "
        "A paper's own value is shown only when it is known for certain.</p>\n"
        f"{body}\n</main></body></html>\n"
    )


def _study(study: StudyPage) -> str:
    shown = base64.b64encode(study.picture.read_bytes()).decode()
    papers = "; ".join(map(html.escape, study.papers))
    notes = "".join(
        f'<p class="note"><strong>{html.escape(str(row.claim))}</strong> {_verdict(row.verdict)}. {html.escape(row.explanation)}</p>'
        for row in study.claims.itertuples()
        if row.explanation
    )
    lost = "".join(f"<li>{html.escape(place)}: {html.escape(reason)}</li>" for place, reason in study.failed)
    failed = f"<h3>Jobs without a result</h3><ul>{lost}</ul>" if lost else ""
    added = html.escape(", ".join(study.own))
    own = f'<p class="note">With settings that the study does not have: {added}.</p>\n' if study.own else ""
    alt = html.escape(f"{study.title}: the figure of what the table below says")
    return (
        f'<section id="{study.name}"><h2>{html.escape(study.title)}</h2>\n<p>{html.escape(study.shows)}</p>\n<p>From: {papers}. '
        f"Scale {study.scale}, {study.n_seeds} seeds: {html.escape(study.cuts)}</p>\n{own}"
        f'<img src="data:image/png;base64,{shown}" alt="{alt}">\n{_table(study.claims)}\n{notes}{failed}\n'
        f"<p>Again: <code>{html.escape(study.command)}</code></p></section>"
    )


def _table(claims: pd.DataFrame) -> str:
    headings = ("claim", "statement", "from", "paper's value", "wanted", "here", "95 % interval", "seeds", "truth's ceiling", "verdict")
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    body = "".join(map(_row, claims.to_dict("records")))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(row: dict[Any, Any]) -> str:
    said = f"{row['statement']}" + (f" (nearest to failing: {row['cell']})" if row["cell"] else "")
    paper = "" if _missing(row["paper_value"]) else str(row["paper_value"])
    value = row["our_value"], row["ci_low"], row["ci_high"]
    here = [significant(number) for number in value]
    limits = f"[{here[1]}, {here[2]}]" if here[1] else ""
    numbers = (paper, row["wanted"], here[0], limits, str(row["n_seeds"]), significant(row["noise_ceiling"]))
    words = (row["claim"], said, f"{row['paper']}, {row['where']}")
    cells = "".join(f"<td>{html.escape(str(word))}</td>" for word in words)
    cells += "".join(f'<td class="number">{html.escape(number)}</td>' for number in numbers)
    return f'<tr>{cells}<td class="verdict">{_verdict(row["verdict"])}</td></tr>'


def _verdict(verdict: str) -> str:
    return f'<span class="{verdict.replace(" ", "-")}">{MARKS[verdict]} {verdict}</span>'


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _marked(claims: pd.DataFrame) -> str:
    """Each claim with its mark."""
    return ", ".join(
        f'<span class="{row.verdict.replace(" ", "-")}">{html.escape(str(row.claim))} {MARKS[row.verdict]}</span>'
        for row in claims.itertuples()
    )
