"""What goes on a report's page: the joined table split up into what each part of the page shows. Drawing is `influx.report.web`'s."""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from influx import sweeps
from influx.errors import InfluxError
from influx.report.tables import significant
from influx.report.web import charts
from influx.report.web.examples import packed
from influx.report.web.page import Chart, Picture, ReportPage, html_of
from influx.report_examples import Examples
from influx.report_numbers import averaged
from influx.report_runs import Reported, setting, versions
from influx.report_views import Room, view
from influx.sweep_jobs import SPEARMAN

MOST_PANELS, MOST_LINES, MOST_ROWS = 9, 5, 60  # charts of agreement; lines in one; rows in one
WIDE = 50.0  # ratio of a swept number's largest to smallest value from which its axis is logarithmic
PICTURES = ("detection.png", "cleansing.png", "debiasing.png", "explanations.png")  # of tasks, which no chart of ours shows
PICTURE_BYTES = 1_200_000  # of all figures on a page
STANDS_ALONE = ("method", "dataset", "model", "task", "truth")  # keys whose values say enough
IDENTITY = ("method", "truth", "measurement")


def page_of(
    runs: Sequence[Reported], commands: Sequence[str], table: pd.DataFrame, ranked: pd.DataFrame, *, title: str, examples: bool
) -> tuple[str, list[str]]:
    """The page's HTML, and lines about what it could not show."""
    every: list[str] = ranked.attrs["keys"]
    keys, said = telling(ranked), ranked.attrs["headline"]
    means = averaged(ranked, keys)
    claims, agree = _claims(runs), said == SPEARMAN
    drawn = _agreement(means, ranked, keys, said["label"])
    shelf = Examples(examples)
    views, units = _views(runs, ranked, keys, shelf)
    held, left_out = packed(shelf.shown)
    notes = [f"examples of {name} are not shown: {reason}" for name, reason in shelf.problems.items()]
    if left_out:
        notes.append(f"{left_out} of {len(shelf.shown)} examples are shown by their title alone: the page has no room for more")
    page = ReportPage(
        title=title,
        lead=_lead(runs, means, claims, keys, sweeps.name_of(said["statistic"])),
        commands=_listed(commands),
        setting=setting(runs),
        statistic=said["label"],
        heading=sweeps.name_of(said["statistic"]),
        agreement_heading="How well estimates agree with the truth" if agree else said["label"],
        agreement_note=_agreement_note(means, keys, agree),
        agreement=drawn,
        averaged=_without_empty(means, keys),
        views=views,
        scatters={unit: charts.scatter(unit=unit) for unit in units},
        examples=held,
        examples_note=" ".join(f"{note[0].upper()}{note[1:]}." for note in notes),
        summary=table,
        cost_chart=_cost_chart(means, keys, said["label"]),
        costs=_costs(runs, keys),
        claims=claims,
        pictures=_pictures(runs, ranked, keys),
        troubles=_troubles(runs, every),
        warned=_warned(runs),
        versions=versions(runs),
        runs=_commands(runs, every),
    )
    return html_of(page), notes


def telling(ranked: pd.DataFrame) -> list[str]:
    """The keys that differ among the runs with a value; all that differ where there is none."""
    known = ranked[ranked["value"].notna()]
    keys: list[str] = ranked.attrs["keys"]
    return [key for key in keys if known[key].astype(str).nunique() > 1] if len(known) else keys


def _listed(commands: Sequence[str]) -> tuple[str, ...]:
    shown = tuple(dict.fromkeys(commands))
    more = len(shown) - MOST_ROWS
    return (*shown[:MOST_ROWS], f"# and {more} more, in the table at the end") if more > 0 else shown


# --------------------------------------------------------------------------------------------------------------- agreement


def _lead(runs: Sequence[Reported], means: pd.DataFrame, claims: pd.DataFrame, keys: Sequence[str], statistic: str) -> tuple[str, ...]:
    """How many runs there are, and the highest and the lowest agreement."""
    done = sum(one.finished for one in runs)
    lines = [f"{done} of {len(runs)} runs finished." if done < len(runs) else f"{done} finished {'run' if done == 1 else 'runs'}."]
    rest = [key for key in keys if key != "seed"]
    for words, at in (("Highest", 0), ("Lowest", len(means) - 1)):
        if len(means) > (words == "Lowest"):
            row = means.iloc[at]
            ceiling = row["noise_ceiling"]
            beside = f" (noise ceiling {significant(ceiling)})" if not math.isnan(ceiling) else ""
            which = f"{words}: {label(row, rest) or 'run'}," if len(means) > 1 else "Agreement with the truth:"
            lines.append(f"{which} {statistic} {_with_interval(row)}{beside}.")
    if len(claims):
        counts = ", ".join(f"{n} {verdict}" for verdict, n in claims["verdict"].value_counts().items())
        lines.append(f"{len(claims)} claims of published studies: {counts}.")
    return tuple(lines)


def _with_interval(row: Mapping[str, Any] | pd.Series) -> str:
    limits = "" if math.isnan(row["ci_low"]) else f" [{significant(row['ci_low'])}, {significant(row['ci_high'])}]"
    return f"{significant(row['value'])}{limits}"


def _without_empty(means: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Without columns that say nothing: numbers that no row has, and how many seeds where none were averaged."""
    empty = [name for name in means if means[name].isna().all() or (means[name].astype(str) == "").all()]
    return means.drop(columns=[*empty, *(["n_runs"] if "seed" not in keys else [])])


def _agreement_note(means: pd.DataFrame, keys: Sequence[str], agree: bool) -> str:
    if means.empty:
        return ""
    if "seed" in keys:
        counts = sorted({int(n) for n in means["n_runs"]})
        many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        alone = ", of a single run its bootstrap" if counts[0] == 1 else ""
        spread = f"Points are means over {many} seeds, lines their 95 % intervals (Student's t over seeds{alone}), thin marks single seeds"
    else:
        over = "bootstrap intervals over left-out and test examples" if agree else "intervals"
        spread = f"Points are runs, lines their 95 % {over}"
    if means["noise_ceiling"].isna().all():
        return f"{spread}." + (" With one retraining seed the noise ceiling of the truth is unknown." if agree else "")
    return f"{spread}; the band is the noise ceiling of the truth with its interval: no estimate blind to the seeds' noise is expected beyond it."


def _agreement(means: pd.DataFrame, ranked: pd.DataFrame, keys: Sequence[str], statistic: str) -> tuple[Chart, ...]:
    """A line along a swept number where one was swept, else a chart for each combination of what was swept beside the method."""
    if means.empty:
        return ()
    rest = [key for key in keys if key != "seed"]
    limits = _limits(ranked)
    number = _swept_number(means, rest)
    if number:
        others = [key for key in rest if key != number]
        at = pd.to_numeric(means[number])
        table = means.assign(at=at, label=[label(row, others) for row in means.to_dict("records")]).sort_values("at", kind="stable")
        wide = bool(at.min() > 0 and at.max() >= WIDE * at.min())
        words = _in_words(table.assign(label=[label(row, rest) for row in table.to_dict("records")]), statistic)
        spec = charts.along(table, statistic=statistic, key=number, logarithmic=wide, limits=limits, description=words)
        return (Chart("agreement-0", "", spec, words, _counts(ranked)),)
    return _panels(means, ranked, rest, statistic, limits)


def _panels(
    means: pd.DataFrame, ranked: pd.DataFrame, rest: Sequence[str], statistic: str, limits: tuple[float, float]
) -> tuple[Chart, ...]:
    places = [key for key in rest if key != "method"]
    n_panels = len(means[places].astype(str).drop_duplicates()) if places else 1
    split = n_panels <= MOST_PANELS and 2 * n_panels <= len(means)
    inside, outside = (["method"] if "method" in rest else rest, places if "method" in rest else []) if split else (list(rest), [])

    def placed(table: pd.DataFrame) -> pd.DataFrame:
        rows = table.to_dict("records")
        return table.assign(panel=[label(row, outside) for row in rows], label=[label(row, inside) or "run" for row in rows])

    singles, made = placed(ranked[ranked["value"].notna()]), []
    for number, (panel, part) in enumerate(placed(means).groupby("panel", sort=False)):
        part = part.head(MOST_ROWS)
        own = singles[(singles["panel"] == panel) & singles["label"].isin(part["label"])]
        own = own if "seed" in ranked.attrs["keys"] else own.head(0)
        words = _in_words(part, statistic)
        spec = charts.agreement(part, own, statistic=statistic, limits=limits, description=words)
        made.append(Chart(f"agreement-{number}", str(panel), spec, words, _counts(ranked[ranked["job"].isin(_jobs(part))])))
    return tuple(made)


def _swept_number(means: pd.DataFrame, rest: Sequence[str]) -> str:
    """The one key along which a line can be drawn; empty where there is none."""
    numeric = [key for key in rest if key not in IDENTITY and pd.to_numeric(means[key], errors="coerce").notna().all()]
    if len(numeric) != 1 or means[numeric[0]].nunique() < 2:
        return ""
    others = means[[key for key in rest if key != numeric[0]]].astype(str).drop_duplicates()
    return numeric[0] if len(others) <= MOST_LINES else ""


def _jobs(means: pd.DataFrame) -> list[int]:
    return [int(number) for jobs in means["jobs"] for number in jobs.split()]


def _counts(ranked: pd.DataFrame) -> str:
    """What the values are about: `50 removals × 30 test examples, 4 retraining seeds`."""
    words = {"n_removed": "removals", "n_test": "test examples", "n_seeds": "retraining seeds"}
    done = ranked[ranked["value"].notna()]
    said = []
    for column, word in words.items():
        numbers = sorted({int(n) for n in done[column].dropna()}) if column in done else []
        if numbers:
            said.append(f"{numbers[0]} {word}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]} {word}")
    return f"n: {', '.join(said)}." if said else ""


def _limits(ranked: pd.DataFrame) -> tuple[float, float]:
    known = pd.concat([ranked[name].astype(float) for name in ("value", "ci_low", "ci_high")]).dropna()
    low, high = min(0.0, known.min()), max(1.0, known.max())
    return math.floor(20 * (low - 0.01)) / 20, math.ceil(20 * (high + 0.01)) / 20


def _in_words(table: pd.DataFrame, statistic: str) -> str:
    """A chart's numbers as a sentence."""
    said = "; ".join(f"{row['label']} {_with_interval(row)}" for row in table.head(12).to_dict("records"))
    more = f"; and {len(table) - 12} more in the table below" if len(table) > 12 else ""
    ceilings = table["noise_ceiling"].dropna()
    highest = ""
    if len(ceilings):
        low, high = significant(ceilings.min()), significant(ceilings.max())
        highest = f" Noise ceiling {low}." if low == high else f" Noise ceilings {low} to {high}."
    return f"{statistic}: {said}{more}.{highest}"


def label(row: Mapping[Any, Any] | pd.Series, keys: Sequence[str]) -> str:
    """What tells a row apart, in words: names stand alone, numbers with their key."""
    said = [(key, str(row[key])) for key in keys if not pd.isna(row[key]) and str(row[key]) != ""]
    return ", ".join(value if key in STANDS_ALONE else f"{key.rpartition('.')[2]} {value}" for key, value in said)


# ---------------------------------------------------------------------------------------------------------------- the runs


def _views(
    runs: Sequence[Reported], ranked: pd.DataFrame, keys: Sequence[str], shelf: Examples
) -> tuple[tuple[dict[str, Any], ...], list[str]]:
    """Finished runs with something to look at, the best one first, and the units of their measurements."""
    order = {job: place for place, job in reversed(list(enumerate(ranked["job"])))}
    done = sorted((one for one in runs if one.finished), key=lambda one: order.get(one.number, len(order)))
    room, made = Room.of(len(done)), []
    for one in done:
        if one.record.get("command") not in ("train", "reproduce"):
            made.append(view(one, f"{one.number}: {label(_asked(one, keys), keys) or _chosen(one)}", room, shelf))
    return tuple(made), sorted({shown["unit"] for shown in made if shown["pairs"]})


def _chosen(one: Reported) -> str:
    """What a run is called that nothing tells from others."""
    choices = one.record.get("choices", {})
    return ", ".join(str(choices[group]) for group in ("method", "dataset", "model") if group in choices) or one.folder


def _asked(one: Reported, keys: Sequence[str]) -> dict[str, str]:
    choices = one.record.get("choices", {})
    return {key: one.job.asked.get(key, choices.get(key, "")) for key in keys}


def _costs(runs: Sequence[Reported], keys: Sequence[str]) -> pd.DataFrame:
    rows = []
    for one in runs:
        if one.finished:
            cost = one.record.get("cost", {})
            stages = {f"{name} (s)": float(seconds) for name, seconds in one.record.get("stage_seconds", {}).items()}
            known = {"parameters": one.record.get("n_parameters"), "operations": cost.get("flops"), "arrays (bytes)": cost.get("nbytes")}
            rows.append({"job": one.number, **_asked(one, keys), **stages, **known, "peak memory (bytes)": cost.get("peak_bytes")})
    table = pd.DataFrame(rows).dropna(axis=1, how="all")
    whole = {name: "Int64" for name in ("parameters", "arrays (bytes)", "peak memory (bytes)") if name in table}
    return table.astype(whole)


def _cost_chart(means: pd.DataFrame, keys: Sequence[str], statistic: str) -> Chart | None:
    """Agreement against seconds, where methods differ."""
    if "method" not in means or means["method"].nunique() < 2:
        return None
    rest = [key for key in keys if key != "seed"]
    known = means[means["seconds"] > 0]
    table = known.assign(label=[label(row, rest) for row in known.to_dict("records")])
    if table.empty:
        return None
    cheapest, dearest = table.loc[table["seconds"].idxmin()], table.loc[table["seconds"].idxmax()]
    words = (
        f"{statistic} against the seconds of the estimate. Cheapest: {cheapest['label']}, {significant(cheapest['seconds'])} s for "
        f"{significant(cheapest['value'])}; dearest: {dearest['label']}, {significant(dearest['seconds'])} s for {significant(dearest['value'])}."
    )
    limits = _limits(means)
    return Chart("cost", "", charts.cost(table, statistic=statistic, limits=limits, description=words), words, words)


def _troubles(runs: Sequence[Reported], keys: Sequence[str]) -> pd.DataFrame:
    rows = [{"job": one.number, **_asked(one, keys), "why": one.status, "folder": one.folder} for one in runs if not one.finished]
    return pd.DataFrame(rows)


def _warned(runs: Sequence[Reported]) -> pd.DataFrame:
    """Each warning once, with the runs that had it."""
    found: dict[str, list[int]] = {}
    for one in runs:
        for line in dict.fromkeys(one.record.get("warnings", [])) if one.finished else ():
            found.setdefault(str(line), []).append(one.number)
    return pd.DataFrame([{"warning": line, "jobs": " ".join(map(str, numbers))} for line, numbers in found.items()])


def _commands(runs: Sequence[Reported], keys: Sequence[str]) -> pd.DataFrame:
    rows = [
        {
            "job": one.number, **_asked(one, keys), "status": one.status.partition(":")[0],
            "repeat": f"influx rerun {shlex.quote(one.folder)}", "words": one.words,
        }
        for one in runs
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _claims(runs: Sequence[Reported]) -> pd.DataFrame:
    """The claims of reproductions, those of all runs in one table."""
    parts = []
    for one in runs:
        if one.finished and one.record.get("command") == "reproduce":
            names = [name for name in one.run.tables if name.rpartition("/")[2] == "claims"]
            whole = ["claims"] if "claims" in names else names
            parts += [one.run.table(name).assign(run=one.number) for name in whole]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _pictures(runs: Sequence[Reported], ranked: pd.DataFrame, keys: Sequence[str]) -> tuple[Picture, ...]:
    """Figures of tasks, the best run's first, as long as there is room."""
    made, spent = [], 0
    for one in runs:
        names = [place.name for place in sorted(one.run.path.glob("*.png"))] if one.record.get("command") == "reproduce" else PICTURES
        for name in names:
            file = one.run.path / name
            if not one.finished or not file.is_file() or spent + file.stat().st_size > PICTURE_BYTES:
                continue
            try:
                content = file.read_bytes()
            except OSError as error:
                raise InfluxError(f"{file} cannot be read ({error.strerror}): copy the folder again, or repeat the run.") from error
            spent += len(content)
            own = ranked[(ranked["job"] == one.number) & ranked["value"].notna()]
            numbers = "; ".join(f"{row.get('method', '')} {_with_interval(row)}" for row in own.head(8).to_dict("records"))
            words = f"{file.stem} of run {one.number} ({label(_asked(one, keys), keys) or one.folder}). {ranked.attrs['headline']['label']}: {numbers}."
            made.append(Picture(f"data:image/png;base64,{base64.b64encode(content).decode()}", words))
    return tuple(made)
