"""One HTML file that holds all of it: style, script, charts, examples. It asks no network for anything, and says so to the browser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pandas as pd

from influx.report.web.tables import definitions, escape, table

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'"  # vega compiles
HEADINGS = {
    "ci_low": "95 % from",
    "ci_high": "to",
    "ceiling_low": "ceiling from",
    "ceiling_high": "ceiling to",
    "n_jobs": "runs averaged",
    "value": "value",
    "job": "run",
}


@dataclass(frozen=True)
class Chart:
    """An interactive chart: its specification, and its numbers in words for those who cannot see it."""

    name: str
    title: str
    spec: Mapping[str, Any]
    words: str
    caption: str


@dataclass(frozen=True)
class Picture:
    """A figure that a run left, as a `data:` address."""

    address: str
    words: str


@dataclass(frozen=True)
class ReportPage:
    """What the page shows; a part that is empty is left out.

    `averaged` and `summary`: tables as `influx.reporting.numbers.averaged` and summary.csv have them; `views`: by run, what the script
    draws of it, with its label; `runs`: a row a run, with the commands that repeat it.
    """

    title: str
    lead: tuple[str, ...]
    commands: tuple[str, ...]
    setting: pd.DataFrame
    statistic: str
    heading: str
    agreement_heading: str
    agreement_note: str
    agreement: tuple[Chart, ...]
    averaged: pd.DataFrame
    views: tuple[Mapping[str, Any], ...]
    scatters: Mapping[str, Mapping[str, Any]]
    examples: Mapping[str, Any]
    examples_note: str
    summary: pd.DataFrame
    cost_chart: Chart | None
    costs: pd.DataFrame
    claims: pd.DataFrame
    pictures: tuple[Picture, ...]
    troubles: pd.DataFrame
    warned: pd.DataFrame
    versions: Mapping[str, str]
    runs: pd.DataFrame


def html_of(page: ReportPage) -> str:
    """The page."""
    parts = [
        ("asked", "What was asked", _asked(page)),
        ("agreement", escape(page.agreement_heading), _agreement(page)),
        ("one", "One run at a time", _one(page)),
        ("claims", "Claims", _claims(page)),
        ("pictures", "Figures of the runs", _pictures(page.pictures)),
        ("all", "Every statistic of every run", _summary(page)),
        ("costs", "What it cost", _costs(page)),
        ("troubles", "Warnings, and runs without a result", _troubles(page)),
        ("again", "Run it again", _again(page)),
    ]
    shown = [(name, heading, body) for name, heading, body in parts if body]
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading, _ in shown)
    sections = "".join(f'<section aria-labelledby="{n}"><h2 id="{n}">{heading}</h2>\n{body}</section>\n' for n, heading, body in shown)
    lead = "".join(f"<li>{escape(line)}</li>" for line in page.lead)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(page.title)}</title>\n'
        f'<style>{_own("style.css")}</style></head><body><a class="skip" href="#main">to the results</a>\n'
        f'<header></header><main id="main" tabindex="-1"><h1>{escape(page.title)}</h1>\n<ul class="lead">{lead}</ul>\n'
        f'<nav aria-label="parts of this page"><ul>{links}</ul></nav>\n'
        "<noscript><p>Charts, sorting and the view of one run need JavaScript; all numbers are in the tables.</p></noscript>\n"
        f'{sections}<div id="hover" role="tooltip"></div></main>\n<script type="application/json" id="report-data">{_data(page)}</script>\n'
        f"<script>{libraries()}</script>\n<script>{_own('script.js')}</script></body></html>\n"
    )


def libraries() -> str:
    """Vega, Vega-Lite and vega-embed as one script that needs no network (about 0.9 MB)."""
    import vl_convert

    return _inside_a_script(vl_convert.javascript_bundle())


def _own(name: str) -> str:
    return (files("influx.report.web") / name).read_text(encoding="utf-8").strip()


def _inside_a_script(text: str) -> str:
    """What an HTML parser would take for the script's end, written so that it does not."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _data(page: ReportPage) -> str:
    charts = {chart.name: chart.spec for chart in (*page.agreement, *_some(page.cost_chart))}
    data = {"charts": charts, "scatter": page.scatters, "examples": page.examples, "runs": page.views}
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")  # within JSON's strings only: nothing else of it has one


def _some(chart: Chart | None) -> tuple[Chart, ...]:
    return () if chart is None else (chart,)


# ------------------------------------------------------------------------------------------------------------------- parts


def _asked(page: ReportPage) -> str:
    commands = "".join(f"<pre><code>{escape(command)}</code></pre>\n" for command in page.commands)
    return commands + table(
        "setting", page.setting, caption="the setting: what was chosen, and the values that runs share; | between those that differ"
    )


def _agreement(page: ReportPage) -> str:
    if page.averaged.empty:
        return ""
    charts = "".join(_figure(chart) for chart in page.agreement)
    choices = [column for column in page.averaged if _is_text(page.averaged, column)]
    numbers = table(
        "averaged",
        page.averaged,
        caption=f"{page.statistic}, the numbers of the chart",
        choices=choices,
        headings=HEADINGS | {"value": page.heading},
    )
    return f'<p class="note">{escape(page.agreement_note)}</p>\n<div class="charts">{charts}</div>\n{numbers}'


def _is_text(rows: pd.DataFrame, column: str) -> bool:
    return not pd.api.types.is_numeric_dtype(rows[column].dtype)


def _figure(chart: Chart) -> str:
    heading = f"<h3>{escape(chart.title)}</h3>" if chart.title else ""
    return (
        f'<figure>{heading}<div class="chart" id="{chart.name}" role="img" aria-label="{escape(chart.words)}"></div>'
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>\n"
    )


def _one(page: ReportPage) -> str:
    """The parts that the script fills for the run that is chosen."""
    if not page.views:
        return ""
    options = "".join(f'<option value="{n}">{escape(view["label"])}</option>' for n, view in enumerate(page.views))
    return (
        f'<p class="chooser"><label>run <select id="run-chooser">{options}</select></label></p>\n'
        '<div id="run-said" role="status"></div>\n'
        '<div id="pairs"><h3>Predicted against actual change</h3>\n'
        '<p><label><input type="checkbox" id="pairs-scale"> symmetric logarithmic scale, which spreads out what is near 0</label></p>\n'
        '<figure><div class="chart" id="pairs-chart" role="img" aria-label="scatter of predicted against actual change"></div>'
        '<figcaption id="pairs-caption"></figcaption></figure>\n'
        '<details><summary>The pairs as a table</summary><div class="scroll" id="pairs-table" role="region" '
        'aria-label="pairs of predicted and actual change" tabindex="0"></div></details></div>\n'
        '<div id="gallery"><h3>Training examples with the largest influence</h3><p class="note" id="gallery-note"></p>\n'
        f'<div class="gallery" id="gallery-rows"></div></div>\n{_note(page.examples_note)}'
        '<div id="run-warned"><h3>Warnings of this run</h3><ul id="run-warnings"></ul></div>\n'
        '<h3>This run again</h3><pre><code id="run-again"></code></pre>\n'
    )


def _claims(page: ReportPage) -> str:
    if page.claims.empty:
        return ""
    return table("claim-table", page.claims, caption="claims of the studies that were reproduced", choices=["study", "paper", "verdict"])


def _pictures(pictures: Sequence[Picture]) -> str:
    return "".join(
        f'<figure class="picture"><img src="{one.address}" alt="{escape(one.words)}">'
        f"<figcaption>{escape(one.words)}</figcaption></figure>\n"
        for one in pictures
    )


def _summary(page: ReportPage) -> str:
    """summary.csv, as it is."""
    if page.summary.empty:
        return ""
    words = [column for column in page.summary if _is_text(page.summary, column) and column not in ("status", "folder")]
    chosen = {"statistic": "spearman"} if "statistic" in page.summary and "spearman" in set(page.summary["statistic"]) else {}
    return table(
        "statistics", page.summary, caption="summary.csv: a row a run and statistic", choices=words, chosen=chosen, headings=HEADINGS
    )


def _costs(page: ReportPage) -> str:
    if page.costs.empty:
        return ""
    chart = "".join(map(_figure, _some(page.cost_chart)))
    return chart + table(
        "cost-table",
        page.costs,
        caption="seconds of each stage, operations and memory of each run",
        choices=["method", "dataset"] if {"method", "dataset"} <= {*page.costs} else [],
        headings=HEADINGS,
    )


def _troubles(page: ReportPage) -> str:
    parts = []
    if not page.troubles.empty:
        parts.append(table("trouble-table", page.troubles, caption="runs without a result, and why", headings=HEADINGS))
    if not page.warned.empty:
        parts.append(table("warning-table", page.warned, caption="warnings of finished runs, and which runs had them", headings=HEADINGS))
    return "".join(parts)


def _again(page: ReportPage) -> str:
    note = (
        "influx rerun repeats a run from its folder with its own configuration; the words beside it make it again with the defaults of the "
        "version that is installed."
    )
    return (
        f"{_note(note)}{definitions(page.versions)}"
        f"{table('runs', page.runs, caption='every run, and the commands that repeat it', code=('repeat', 'words'), headings=HEADINGS)}"
    )


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>\n' if text else ""
