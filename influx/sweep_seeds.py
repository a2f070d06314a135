"""Jobs of a sweep that differ in nothing but a seed, as one: their mean, and how far they scatter.

The interval is Student's t over jobs, mean ± t₀.₉₇₅,ₙ₋₁ · s/√n: what another seed would change; where several keys are crossed
(`seed=0,1,2 dataset.split_seed=0,1,2`), that of `influx.statistics.interval_over_crossed`. That of a single job (a bootstrap over its
removals and test examples) says something else and is not used here. Two jobs whose truths share retraining seeds are not independent:
`shared_seeds` says so.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from influx.statistics import interval_over_crossed, interval_over_seeds

REPEATS = ("seed", "dataset.split_seed", "dataset.noise_seed")  # keys that repeat a setting instead of changing it
NUMBERS = ("value", "noise_ceiling")
MEANS = ("corrected", "seconds")


def over_seeds(ranked: pd.DataFrame) -> pd.DataFrame | None:
    """One row for the finished jobs that share everything but their seeds, best first; None when nothing was repeated.

    `ranked` is `sweeps.headline`'s. `n_jobs` is how many seeds there are: jobs of the same one are averaged first, and count once.
    `job` is empty. `attrs` has the keys left and those that were repeated, and the jobs that are left out: `again`, those of a seed that
    another has, and `undefined`, those that finished without a value.
    """
    repeated = [key for key in ranked.attrs["keys"] if key in REPEATS]
    keys = [key for key in ranked.attrs["keys"] if key not in repeated]
    done = ranked[ranked["value"].notna()]
    if not repeated or done.empty:
        return None
    named = [*keys, *(name for name in ("baseline",) if name in done)]
    text = done[named].astype(object).where(done[named].notna(), "")
    groups = done.groupby([text[name].astype(str) for name in named], sort=False) if named else [("", done)]
    rows = [_row(part, named, repeated) for _, part in groups]
    made = pd.DataFrame(rows).sort_values("value", ascending=False, kind="stable").reset_index(drop=True)
    if (made["n_jobs"] < 2).all():
        return None
    again = done["job"][done.assign(**{name: text[name].astype(str) for name in named}).duplicated([*named, *repeated])]
    undefined = ranked["job"][ranked["value"].isna() & (ranked["status"] == "finished")] if "status" in ranked else again.head(0)
    left_out = {"again": sorted(map(int, again)), "undefined": sorted(map(int, undefined))}
    made.attrs = {**ranked.attrs, "keys": keys or ["method"], "repeated": repeated, **left_out}
    return made


def _row(part: pd.DataFrame, named: list[str], repeated: list[str]) -> dict[str, object]:
    first = part.iloc[0]
    kept = {name: first[name] for name in dict.fromkeys([*named, *(name for name in ("method", "measurement") if name in part)])}
    each = part.groupby(repeated, sort=False, dropna=False)[[name for name in (*NUMBERS, *MEANS) if name in part]].mean()
    value, low, high = _interval(each["value"])
    ceiling, ceiling_low, ceiling_high = _interval(each["noise_ceiling"])
    numbers = {"value": value, "ci_low": low, "ci_high": high, "noise_ceiling": ceiling}
    means = {name: _interval(each[name])[0] for name in MEANS if name in each}
    return {
        **kept, **numbers, "ceiling_low": ceiling_low, "ceiling_high": ceiling_high, **means, "n_jobs": len(each), "job": "",
        "status": "finished",
    }  # fmt: skip


def _interval(values: pd.Series) -> tuple[float, float, float]:
    """Of values by the keys that repeat a setting (levels of the index): each combination one draw, but where several keys are crossed."""
    known = values.dropna()
    names = [name for name in known.index.names if known.index.get_level_values(name).nunique() > 1]
    levels = [known.groupby(level=name, sort=False).mean().to_numpy(float) for name in names]
    if len(levels) < 2 or max(map(len, levels)) == len(known):  # one key, or keys that change together
        return interval_over_seeds(np.asarray(known, float))
    return interval_over_crossed(levels)


def left_out(averaged: pd.DataFrame) -> list[str]:
    """Lines about finished jobs that `over_seeds` does not count."""
    said = {
        "again": "of a seed that another job of the same setting has: one value a seed is counted",
        "undefined": "finished with an undefined value and in no mean",
    }
    found = {why: averaged.attrs.get(why, []) for why in said}
    return [f"job{'s' * (len(jobs) > 1)} {', '.join(map(str, jobs))}: {said[why]}." for why, jobs in found.items() if jobs]


def shared_seeds(table: pd.DataFrame) -> str:
    """A line for jobs whose truths were retrained with some of the same seeds; empty when there are none.

    A job's truth takes the `n_seeds` seeds that begin at `seed`, so neighbours nearer than that share some.
    """
    if "seed" not in table or "n_seeds" not in table:
        return ""
    seeds = sorted({int(seed) for seed in pd.to_numeric(table["seed"], errors="coerce").dropna()})
    each = pd.to_numeric(table["n_seeds"], errors="coerce").max()
    gaps = np.diff(seeds)
    if math.isnan(each) or not len(gaps) or gaps.min() >= each:
        return ""
    apart = ",".join(str(seeds[0] + at * int(each)) for at in range(len(seeds)))
    return (
        f"Each truth takes {int(each)} retraining seeds from its own seed on, so these jobs share some: intervals over them are too "
        f"narrow. seed={apart} shares none."
    )
