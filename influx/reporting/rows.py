"""The tables of a report's page that have a row a run: costs, commands, troubles, warnings; and claims, with figures that runs left."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import pandas as pd
from PIL import Image, UnidentifiedImageError

from influx.errors import InfluxError
from influx.report.web.page import Picture
from influx.reporting.agreement import label, with_interval
from influx.reporting.runs import Reported

PICTURES = ("detection.png", "cleansing.png", "debiasing.png", "explanations.png")  # of tasks, which no chart of ours shows
PICTURE_BYTES = 1_200_000  # of all figures on a page
CLAIM_COLUMNS = ("study", "claim", "statement", "verdict", "wanted", "our_value", "ci_low", "ci_high", "paper_value", "paper", "where")


def asked(one: Reported, keys: Sequence[str]) -> dict[str, str]:
    choices = one.record.get("choices", {})
    return {key: one.job.asked.get(key, choices.get(key, "")) for key in keys}


def chosen(one: Reported) -> str:
    """What a run is called that nothing tells from others."""
    choices = one.record.get("choices", {})
    return ", ".join(str(choices[group]) for group in ("method", "dataset", "model") if group in choices) or one.folder


def costs(runs: Sequence[Reported], keys: Sequence[str]) -> pd.DataFrame:
    """Seconds of each stage, operations and bytes of each finished run; columns that no run has are left out."""
    rows = []
    for one in (one for one in runs if one.finished):
        cost = one.record.get("cost", {})
        stages = {f"{name} (s)": float(seconds) for name, seconds in one.record.get("stage_seconds", {}).items()}
        known = {"parameters": one.record.get("n_parameters"), "operations": cost.get("flops"), "arrays (bytes)": cost.get("nbytes")}
        rows.append({"job": one.number, **asked(one, keys), **stages, **known, "peak memory (bytes)": cost.get("peak_bytes")})
    table = pd.DataFrame(rows).dropna(axis=1, how="all")
    return table.astype({name: "Int64" for name in ("parameters", "arrays (bytes)", "peak memory (bytes)") if name in table})


def troubles(runs: Sequence[Reported], keys: Sequence[str]) -> pd.DataFrame:
    """The runs that did not finish, and why."""
    return pd.DataFrame(
        [{"job": one.number, **asked(one, keys), "why": one.status, "folder": one.folder} for one in runs if not one.finished]
    )


def warned(runs: Sequence[Reported]) -> pd.DataFrame:
    """Each warning once, with the runs that had it."""
    found: dict[str, list[int]] = {}
    for one in (one for one in runs if one.finished):
        for line in dict.fromkeys(one.record.get("warnings", [])):
            found.setdefault(str(line), []).append(one.number)
    return pd.DataFrame([{"warning": line, "runs": " ".join(map(str, numbers))} for line, numbers in found.items()])


def commands(runs: Sequence[Reported], keys: Sequence[str]) -> pd.DataFrame:
    """The commands that repeat each run."""
    rows = [
        {"job": one.number, **asked(one, keys), "status": one.status.partition(":")[0], "repeat": one.again, "words": one.words}
        for one in runs
    ]
    return pd.DataFrame(rows)


def claims(runs: Sequence[Reported]) -> pd.DataFrame:
    """The claims of reproductions, those of all runs in one table; the verdict stands near the front.

    Raises:
        InfluxError: a table of claims is damaged.
    """
    parts = []
    for one in runs:
        if one.finished and one.record.get("command") == "reproduce":
            names = [name for name in one.run.tables if name.rpartition("/")[2] == "claims"]
            parts += [one.run.table(name).assign(run=one.number) for name in (["claims"] if "claims" in names else names)]
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True).dropna(axis=1, how="all")
    front = [name for name in CLAIM_COLUMNS if name in table]
    return table[[*front, *(name for name in table if name not in front)]]


def pictures(runs: Sequence[Reported], ranked: pd.DataFrame, keys: Sequence[str]) -> tuple[Picture, ...]:
    """Figures of tasks and of reproductions, as long as there is room.

    Raises:
        InfluxError: a figure cannot be read.
    """
    made, spent = [], 0
    for one in (one for one in runs if one.finished):
        study = one.record.get("command") == "reproduce"
        for file in sorted(one.run.path.glob("*.png")) if study else [one.run.path / name for name in PICTURES]:
            if not file.is_file() or spent + file.stat().st_size > PICTURE_BYTES:
                continue
            try:
                content = file.read_bytes()
            except OSError as error:
                raise InfluxError(f"{file} cannot be read ({error.strerror}): copy the folder again, or repeat the run.") from error
            spent += len(content)
            said = in_words(content) or file.stem.replace("_", " ")
            words = f"Run {one.number} ({label(asked(one, keys), keys) or chosen(one)}): {said}"
            address = f"data:image/png;base64,{base64.b64encode(content).decode()}"
            made.append(Picture(address, f"{words}{_numbers(one, ranked)}"))
    return tuple(made)


def in_words(png: bytes) -> str:
    """What a figure's file says that it shows (`influx.report.saving`); empty where it says nothing."""
    try:
        with Image.open(io.BytesIO(png)) as picture:
            return str(picture.info.get("Description", ""))
    except UnidentifiedImageError:
        return ""


def _numbers(one: Reported, ranked: pd.DataFrame) -> str:
    """The numbers that a figure shows, in words."""
    own = ranked[(ranked["job"] == one.number) & ranked["value"].notna()]
    said = "; ".join(f"{row.get('method', '')} {with_interval(row)}" for row in own.head(8).to_dict("records"))
    return f". {ranked.attrs['headline']['label']}: {said}." if said else ". Its numbers are in the table of claims."
