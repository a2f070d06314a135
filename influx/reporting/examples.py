"""Training and test examples of finished runs, to be looked at on a report's page.

The data set is made again from the run's own configuration; nothing is trained, encoded or fetched. What cannot be made again (files that
have gone, a class of the user's that is not installed) leaves the page with numbers, and a line that says why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from influx.errors import InfluxError
from influx.report.web.examples import Shown
from influx.reporting.runs import Reported

MAKERS = ("dataset", "objective", "measurement")  # what a run's examples depend on


@dataclass
class Examples:
    """Examples by data set, part and position, each made and kept once.

    `shown` is what the page holds, in the order in which it was asked for; `problems` says which data sets could not be made again.
    """

    wanted: bool = True  # false shows none
    shown: list[Shown] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    _places: dict[tuple[str, str, int], int] = field(default_factory=dict)
    _sets: dict[str, Any] = field(default_factory=dict)

    def number(self, run: Reported, part: str, index: int) -> int | None:
        """The place among `shown` of the `train` or `test` example at `index` of a run; None when it cannot be shown."""
        if not self.wanted:
            return None
        made_of = {**{name: run.config.get(name) for name in MAKERS}, "data": run.record.get("data")}
        key = json.dumps(made_of, sort_keys=True, default=str)
        if key not in self._sets:
            self._sets[key] = self._load(made_of)
        place = key, part, index
        if place not in self._places:
            found = _shown(self._sets[key], part, index)
            if found is None:
                return None
            self._places[place] = len(self.shown)
            self.shown.append(found)
        return self._places[place]

    def _load(self, made_of: Mapping[str, Any]) -> Any:
        """The data set, or None with a line under `problems`."""
        name = str((made_of["dataset"] or {}).get("_target_", "unknown")).rpartition(".")[2]
        try:
            return load(made_of)
        except Exception as error:  # classes of users' own may raise anything, and the page does without their pictures
            self.problems[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
            return None


def load(made_of: Mapping[str, Any]) -> Any:
    """The data set that nodes `dataset`, `objective` and `measurement` of a configuration describe, from what is on this machine; `data` is
    the digest that it had in the run, if that says so.

    Raises:
        InfluxError: it cannot be made here, or it is another one by now.
    """
    from influx.datasets import Dataset
    from influx.instantiate import build
    from influx.measurements import Measurement
    from influx.measurements.base import Posing
    from influx.objectives import Objective
    from influx.objectives.base import Unlabelled

    node = made_of["dataset"]
    if not node:
        raise InfluxError("the run does not say which data set it had.")
    node = {**node, "download": False} if "download" in node else node
    data = build(node, Dataset, "dataset").load()
    if made_of["data"] not in (None, data.shown_digest()):
        raise InfluxError("its files, or the class that reads them, have changed since the run: positions may mean other examples.")
    objective = build(made_of["objective"], Objective, "objective")
    if isinstance(objective, Unlabelled):
        data = objective.prepare(data)
    measurement = build(made_of["measurement"], Measurement, "measurement")
    return measurement.pose(data) if isinstance(measurement, Posing) else data


def _shown(data: Any, part: str, index: int) -> Shown | None:
    """An example as the page keeps it: an image, features with their values in original units, or the beginning of a text."""
    from influx.pipelines.exhibits import exhibit

    if data is None:
        return None
    rows = np.flatnonzero(getattr(data, f"{part}_index") == index)
    if len(rows) == 0:
        return None
    made = exhibit(data, part, int(rows[0]))
    if made.image is not None:
        return Shown(made.title, image=made.image)
    if data.texts or not made.lines or not all(" = " in line for line in made.lines):
        return Shown(made.title, text=" ".join(made.lines))
    named = [line.partition(" = ") for line in made.lines]
    return Shown(made.title, features=tuple((name, value) for name, _, value in named))


def unit_of(config: Mapping[str, Any]) -> str:
    """The unit of a run's measurement, in words; empty when it cannot be told."""
    from influx.instantiate import build
    from influx.measurements import Measurement

    try:
        return build(config.get("measurement") or {}, Measurement, "measurement").unit
    except Exception:  # of a class of the user's own, as above
        return ""
