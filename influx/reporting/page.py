"""What goes on a report's page: the joined table split up into what each part of the page shows. Drawing is `influx.report.web`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from influx import sweeps
from influx.report.tables import significant
from influx.report.web import charts
from influx.report.web.examples import packed
from influx.report.web.page import ReportPage, html_of
from influx.reporting import rows
from influx.reporting.agreement import MOST_ROWS, agreement_charts, cost_chart, label, note, with_interval
from influx.reporting.examples import Examples
from influx.reporting.numbers import averaged, telling
from influx.reporting.runs import Reported, setting, versions
from influx.reporting.views import Room, view
from influx.sweep_jobs import SPEARMAN


def page_of(
    runs: Sequence[Reported], commands: Sequence[str], table: pd.DataFrame, ranked: pd.DataFrame, *, title: str, examples: bool
) -> tuple[str, list[str]]:
    """The page's HTML, and lines about what it could not show.

    `table` is summary.csv's, `ranked` its headline (`influx.sweeps`); `examples` false leaves training and test examples out.
    """
    known, said, every = telling(ranked), ranked.attrs["headline"], ranked.attrs["keys"]
    keys, agree = known.attrs["keys"], said == SPEARMAN
    means, claims = averaged(ranked), rows.claims(runs)
    shelf = Examples(examples)
    views, units = _views(runs, known, shelf)
    held, left_out = packed(shelf.shown)
    notes = _notes(shelf, left_out)
    page = ReportPage(
        title=title,
        lead=_lead(runs, means, claims, sweeps.name_of(said["statistic"])),
        commands=_listed(commands),
        setting=setting(runs),
        statistic=said["label"],
        heading=sweeps.name_of(said["statistic"]),
        agreement_heading="How well estimates agree with the truth" if agree else said["label"],
        agreement_note=note(means, known, agree),
        agreement=agreement_charts(means, known, said["label"]),
        averaged=_without_empty(means),
        views=views,
        scatters={unit: charts.scatter(unit=unit) for unit in units},
        examples=held,
        examples_note=" ".join(f"{line[0].upper()}{line[1:]}." for line in notes),
        summary=table if "statistic" in table else table.head(0),
        cost_chart=cost_chart(means, said["label"]),
        costs=rows.costs(runs, every),
        claims=claims,
        pictures=rows.pictures(runs, ranked, keys),
        troubles=rows.troubles(runs, every),
        warned=rows.warned(runs),
        versions=versions(runs),
        runs=rows.commands(runs, every),
    )
    return html_of(page), notes


def _notes(shelf: Examples, left_out: int) -> list[str]:
    made = [f"examples of {name} are not shown: {reason.rstrip('.')}" for name, reason in shelf.problems.items()]
    if left_out:
        made.append(f"{left_out} of {len(shelf.shown)} examples are shown by their title alone: the page has no room for more")
    return made


def _listed(commands: Sequence[str]) -> tuple[str, ...]:
    shown = tuple(dict.fromkeys(commands))
    more = len(shown) - MOST_ROWS
    return (*shown[:MOST_ROWS], f"# and {more} more, in the table at the end") if more > 0 else shown


def _lead(runs: Sequence[Reported], means: pd.DataFrame, claims: pd.DataFrame, statistic: str) -> tuple[str, ...]:
    """How many runs there are, the highest and the lowest agreement, and what became of claims."""
    done = sum(one.finished for one in runs)
    lines = [f"{done} of {len(runs)} runs finished." if done < len(runs) else f"{done} finished {'run' if done == 1 else 'runs'}."]
    ends = means.iloc[[0, -1]] if len(means) > 1 else means
    for words, row in zip(("Highest", "Lowest"), ends.to_dict("records"), strict=False):
        ceiling = row["noise_ceiling"]
        beside = "" if pd.isna(ceiling) else f" (noise ceiling {significant(ceiling)})"
        which = f"{words}: {label(row, means.attrs['keys']) or 'run'}," if len(means) > 1 else "Result:"
        lines.append(f"{which} {statistic} {with_interval(row)}{beside}.")
    if len(claims):
        counts = ", ".join(f"{n} {verdict}" for verdict, n in claims["verdict"].value_counts().items())
        lines.append(f"{len(claims)} claims of published studies: {counts}.")
    return tuple(lines)


def _without_empty(means: pd.DataFrame) -> pd.DataFrame:
    """Without columns that no row has a value in."""
    return means.drop(columns=[name for name in means if means[name].isna().all() or (means[name].astype(str) == "").all()])


def _views(runs: Sequence[Reported], known: pd.DataFrame, shelf: Examples) -> tuple[tuple[Mapping[str, Any], ...], list[str]]:
    """Finished runs with something to look at, the best one first, and the units of their measurements."""
    keys = known.attrs["keys"]
    order = {job: place for place, job in reversed(list(enumerate(known["job"])))}
    done = [one for one in runs if one.finished and one.record.get("command") not in ("train", "reproduce")]
    done.sort(key=lambda one: order.get(one.number, len(order)))
    room = Room.of(len(done))
    made = [view(one, f"{one.number}: {label(rows.asked(one, keys), keys) or rows.chosen(one)}", room, shelf) for one in done]
    return tuple(made), sorted({shown["unit"] for shown in made if shown["pairs"]})
