"""What a logger is told of a run, read from its record and its files when it has ended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from influx.errors import InfluxError

SHOWN = (".csv", ".md", ".png", ".json")  # files that people look at; arrays and parameters stay in the run folder
MEASURES = ("ci_low", "ci_high", "noise_ceiling", "corrected")  # of a statistic, beside its value


@dataclass(frozen=True)
class Account:
    """One run that has ended.

    `name`: its folder's name; a sweep's job has the sweep's before a slash, and that alone is `group`.
    `status`: "finished", or "failed: " and why. `begun`: when, in seconds since the epoch.
    `parameters`: the configuration, nested, with the chosen option of each group as `option`. `asked`: keys that
    were set on the command line.
    `history`: a row an epoch (`epoch`, then loss, accuracy, gradient norm ...), empty when nothing was trained.
    `metrics`: numbers of the whole run by name: statistics with their intervals (`correlations/spearman`,
    `correlations/spearman_ci_low`), seconds a stage, facts. NaN is left out.
    `files`: tables, figures and the record. `tags`: what finds and repeats the run.
    """

    name: str
    group: str
    path: Path
    command: str
    status: str
    begun: float
    parameters: dict[str, Any]
    asked: tuple[str, ...]
    history: pd.DataFrame
    metrics: dict[str, float]
    files: tuple[Path, ...]
    tags: dict[str, str]

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def flat(self) -> dict[str, Any]:
        """`parameters` with dotted names, as on the command line; values are numbers, truth values or texts."""
        return dict(_leaves(self.parameters))

    @property
    def main(self) -> dict[str, Any]:
        """Of `flat` what runs are told apart by: the seed, the chosen options, and what was set on the command line."""
        return {
            key: value
            for key, value in self.flat.items()
            if key in ("seed", *self.asked) or (key.count(".") == 1 and key.endswith(".option"))
        }

    def texts(self) -> dict[str, str]:
        """The run's Markdown tables by file name."""
        return {file.name: file.read_text() for file in self.files if file.suffix == ".md"}

    def pictures(self) -> dict[str, Path]:
        return {file.stem: file for file in self.files if file.suffix == ".png"}


def account_of(path: Path, record: Mapping[str, Any], config: Mapping[str, Any]) -> Account:
    """The account of the run in folder `path`; `record` is its run.json, `config` what it was composed of, without the logger."""
    job = (path.parent / "multirun.yaml").is_file()
    return Account(
        name=f"{path.parent.name}/{path.name}" if job else path.name,
        group=path.parent.name if job else "",
        path=path,
        command=str(record["command"]),
        status=str(record["status"]).strip().splitlines()[0],
        begun=datetime.strptime(record["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp(),
        parameters=_parameters(config, record.get("choices", {})),
        asked=tuple(str(word).lstrip("+~").partition("=")[0] for word in record.get("overrides", [])),
        history=_history(path / "history.csv"),
        metrics={name: value for name, value in _metrics(path, record) if math.isfinite(value)},
        files=tuple(sorted(file for file in path.iterdir() if file.suffix in SHOWN)),
        tags=_tags(path, record),
    )


def _parameters(config: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, Any]:
    made = _without_targets(config)
    for place, option in choices.items():
        *above, last = place.partition("@")[2].split(".") if "@" in place else [place]
        inside = made
        for key in above:
            inside = inside.get(key, {})
        if isinstance(inside.get(last), dict):
            inside[last] = {"option": option, **inside[last]}
        elif place in ("experiment", "task"):
            made[place] = option
    return made


def _without_targets(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _without_targets(value) if isinstance(value, Mapping) else value for key, value in config.items() if key != "_target_"}


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "null" if value is None else value if isinstance(value, int | float | str) else str(value)


def _history(file: Path) -> pd.DataFrame:
    return pd.read_csv(file) if file.is_file() else pd.DataFrame({"epoch": []})


def _metrics(path: Path, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    file = path / record.get("table", "correlations.csv")
    if record["status"] == "finished" and file.is_file():
        yield from _statistics(file, record.get("choices", {}).get("method"))
    for name, value in record.get("facts", {}).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"facts/{name}", float(value)
    yield from ((f"seconds/{stage}", float(seconds)) for stage, seconds in record["stage_seconds"].items())


def _statistics(file: Path, method: str | None) -> Iterator[tuple[str, float]]:
    """Of a table with a row a statistic; of a task's, which compares scores, the rows of the run's own method."""
    table = pd.read_csv(file)
    if "score" in table:
        table = table[table["score"] == method]
    if not {"statistic", "value"} <= {*table.columns}:
        raise InfluxError(f"{file} has no columns statistic and value")
    for row in table.to_dict("records"):
        kind = f"_{row['kind']}" if "kind" in row and table["statistic"].duplicated().any() else ""
        name = f"{file.stem}/{row['statistic']}{kind}"
        yield name, float(row["value"])
        yield from ((f"{name}_{measure}", float(row[measure])) for measure in MEASURES if measure in row)


def _tags(path: Path, record: Mapping[str, Any]) -> dict[str, str]:
    said = {key: record.get(key) for key in ("command", "config_digest", "git_commit", "source")}
    said |= {
        "influx": record["versions"]["influx"],
        "torch": record["versions"]["torch"],
        "folder": path.resolve(),
        "status": record["status"],
    }
    return {key: str(value).strip() for key, value in said.items() if value is not None}
