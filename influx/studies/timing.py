"""How long a job's stages took: measurements of one machine at one time, so no other result holds them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from influx.studies.comparisons import Comparison, Folders, rows_of


@dataclass(frozen=True)
class Seconds(Comparison):
    """Wall seconds of one stage of an arm's jobs (`train`, `estimate`, ...), statistic `seconds`; `over`, the ratio to another arm's.

    Both arms' jobs run on as many threads and beside as many others, so that the ratio of a seed says more than its seconds.

    Args:
        arm: whose stage is timed.
        stage: a name under `stage_seconds` in run.json.
        over: the arm that is the denominator of the statistic `ratio`; null = none.
    """

    arm: str
    stage: str = "estimate"
    over: str | None = None

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm,) if self.over is None else (self.arm, self.over)

    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        made: dict[int, dict[str, float]] = {}
        for seed in self.seeds(folders):
            seconds = [json.loads((folders[arm][seed] / "run.json").read_text())["stage_seconds"][self.stage] for arm in self.arms]
            made[seed] = {"seconds": seconds[0]} | ({"ratio": seconds[0] / seconds[1]} if self.over else {})
        return rows_of(made)
