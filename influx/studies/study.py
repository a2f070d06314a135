"""A study: a grid of `influx validate` jobs, the claims that their numbers decide, and one figure.

A YAML file in `conf/study/` says all of it (a user's own in any `--config-dir`):

    title, papers, shows     what it is about, in words
    needs                    {extra, modules}: the extra of `influx` that installs the modules it cannot do without; left out: none
    settings                 settings of every job, as typed on the command line
    arms                     name -> {label, settings, grid, together}: kinds of job that the study compares
    grid                     axis -> levels; a level is a value of the setting that the axis names, or a name with settings of its own
    scales                   quick and paper -> {seeds, takes, cuts, settings, grid, skip, arms}; arms: name -> the arm's grid at this scale
    compare                  name -> comparison of arms with one another (`influx.studies.comparisons`)
    claims                   list (`influx.studies.claims`)
    figure                   one of `influx.report.figures`

Later settings win: the study's, the scale's, the arm's, the grid point's. A grid is replaced axis by axis: the study's by the scale's, then
by the arm's, then by the arm's at that scale; an arm may name levels of an axis instead of repeating their settings. `{seed}` in a setting
is the job's seed.

An arm has a job for each seed. With `together: true` it has one for all of them, whose truth holds a column a seed (retraining.seeds): much
less work where only the truth is wanted. Its correlations would be of one seed's estimate with the mean truth: only comparisons read it.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from influx.errors import InfluxError, nearest
from influx.instantiate import build
from influx.report.figures import Figure
from influx.studies.claims import Claim, check_keys
from influx.studies.comparisons import Comparison

SCALES = ("quick", "paper")
KEYS = ("title", "papers", "shows", "needs", "settings", "arms", "grid", "scales", "compare", "claims", "figure")
ARM_KEYS = ("label", "settings", "grid", "together")
NEEDS_KEYS = ("extra", "modules")
SCALE_KEYS = ("seeds", "takes", "cuts", "settings", "grid", "skip", "arms")

Grid = Mapping[str, Any]  # axis -> list of values, or name -> settings


@dataclass(frozen=True)
class Arm:
    """One kind of job: its name, what figures call it, its settings, its own part of the grid, and whether one job has all seeds."""

    name: str
    label: str
    settings: tuple[str, ...] = ()
    grid: Grid = field(default_factory=dict)
    together: bool = False


@dataclass(frozen=True)
class Scale:
    """How much of the protocol is run: number of seeds, the time it takes here, what it leaves out (both in words), and what it changes."""

    name: str
    seeds: int
    takes: str
    cuts: str
    settings: tuple[str, ...] = ()
    grid: Grid = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    arms: Mapping[str, Grid] = field(default_factory=dict)


@dataclass(frozen=True)
class Needs:
    """What a study cannot do without: modules, and the extra of `influx` that installs them."""

    extra: str = ""
    modules: tuple[str, ...] = ()

    @property
    def missing(self) -> str:
        """One line that says what is missing and how to get it; empty when everything is there."""
        absent = [name for name in self.modules if importlib.util.find_spec(name) is None]
        return f"needs {', '.join(absent)}: pip install 'influx[{self.extra}]'" if absent else ""


@dataclass(frozen=True)
class Job:
    """One `influx validate` run: its arm, its place in the grid (axis -> level), its seed (the first, if it has all), and its settings."""

    arm: str
    point: dict[str, Any]
    seed: int
    settings: tuple[str, ...]
    together: int = 0  # seeds, counted up from `seed`, of a job that has all of them

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + max(self.together, 1)))

    @property
    def place(self) -> str:
        """The job's folder below the study's."""
        levels = ",".join(f"{axis}={level}" for axis, level in self.point.items())
        which = f"seeds={self.seed}-{self.seeds[-1]}" if self.together else f"seed={self.seed}"
        return "/".join(part for part in (self.arm, levels.replace("/", "-"), which) if part)


@dataclass(frozen=True)
class Study:
    """See the top of this file."""

    name: str
    title: str
    papers: tuple[str, ...]
    shows: str
    settings: tuple[str, ...]
    arms: dict[str, Arm]
    grid: Grid
    scales: dict[str, Scale]
    compare: dict[str, Comparison]
    claims: tuple[Claim, ...]
    figure: Figure
    needs: Needs = Needs()

    @classmethod
    def read(cls, name: str, node: Mapping[str, Any]) -> Study:
        """The study that a YAML file describes.

        Raises:
            InfluxError: a key is missing or unknown, or a claim or comparison names an arm that there is not.
        """
        about = f"study {name}"
        check_keys(about, node, KEYS, needed=("title", "papers", "shows", "arms", "scales", "claims", "figure"))
        arms = {key: _arm(about, key, value or {}) for key, value in node["arms"].items()}
        scales = {key: _scale(about, key, value or {}) for key, value in node["scales"].items()}
        if set(scales) != set(SCALES):
            raise InfluxError(f"{about}: scales are {', '.join(scales)}; there must be {' and '.join(SCALES)}.")
        compare = {key: build(value, Comparison, f"{about}.compare.{key}") for key, value in (node.get("compare") or {}).items()}
        claims = tuple(Claim.read(f"{about}.claims", value) for value in node["claims"])
        made = cls(
            name, node["title"], tuple(node["papers"]), node["shows"], tuple(node.get("settings") or ()), arms, node.get("grid") or {},
            scales, compare, claims, build(node["figure"], Figure, f"{about}.figure"), _needs(about, node.get("needs") or {}),
        )  # fmt: skip
        made._check_names()
        return made

    def _check_names(self) -> None:
        for scale in self.scales.values():
            self._check_arms(f"scales.{scale.name}.arms", tuple(scale.arms), self.arms)
        for name, comparison in self.compare.items():
            if name in self.arms:
                raise InfluxError(f"study {self.name}: '{name}' is both an arm and a comparison; give one of them another name.")
            self._check_arms(f"compare.{name}", comparison.arms, self.arms)
        for claim in self.claims:
            self._check_arms(f"claim {claim.claim}", claim.arms, {**self.arms, **self.compare})

    def _check_arms(self, where: str, named: Sequence[str], known: Mapping[str, Any]) -> None:
        for arm in named:
            if arm not in known:
                raise InfluxError(f"study {self.name}: {where} names '{arm}'; there are {', '.join(known)}.{nearest(arm, known)}")

    def jobs(self, scale: str, *, seeds: int | None = None, first_seed: int = 0, more: Sequence[str] = ()) -> list[Job]:
        """All jobs, arm by arm and within an arm point by point; `more` are settings that win over everything.

        Neighbours in the list differ in their seed, so that processes that take them side by side train different models.
        """
        chosen = self.scales[scale]
        made = []
        for arm in self.arms.values():
            if arm.name in chosen.skip:
                continue
            count = seeds or chosen.seeds
            for point, settings in self._points(arm, chosen):
                for seed in range(first_seed, first_seed + (1 if arm.together else count)):
                    own = (f"seed={seed}", *((f"retraining.seeds={count}",) if arm.together else ()))
                    words = (*self.settings, *chosen.settings, *arm.settings, *settings, *own, *more)
                    filled = tuple(word.replace("{seed}", str(seed)) for word in words)
                    made.append(Job(arm.name, point, seed, filled, count if arm.together else 0))
        return made

    def _points(self, arm: Arm, scale: Scale) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
        axes = {**self.grid, **scale.grid, **arm.grid, **scale.arms.get(arm.name, {})}
        levels = [self._levels(axis, chosen, scale) for axis, chosen in axes.items()]
        return [
            ({axis: level for axis, (level, _) in zip(axes, combination, strict=True)}, tuple(w for _, words in combination for w in words))
            for combination in itertools.product(*levels)
        ]

    def _levels(self, axis: str, chosen: Any, scale: Scale) -> list[tuple[Any, tuple[str, ...]]]:
        """(level, its settings) for each level of an axis."""
        named = {
            name: words for grid in (self.grid, scale.grid) if isinstance(grid.get(axis), Mapping) for name, words in grid[axis].items()
        }
        if isinstance(chosen, Mapping):
            return [(name, tuple(words or ())) for name, words in chosen.items()]
        if not named:
            return [(value, (f"{axis}={value}",)) for value in chosen]
        for name in chosen:
            if name not in named:
                raise InfluxError(f"study {self.name}: {axis} has no level '{name}'; there are {', '.join(named)}.{nearest(name, named)}")
        return [(name, tuple(named[name] or ())) for name in chosen]


def _arm(about: str, name: str, node: Mapping[str, Any]) -> Arm:
    check_keys(f"{about}.arms.{name}", node, ARM_KEYS, needed=())
    label = node.get("label") or name.replace("_", " ")
    return Arm(name, label, tuple(node.get("settings") or ()), node.get("grid") or {}, bool(node.get("together")))


def _needs(about: str, node: Mapping[str, Any]) -> Needs:
    check_keys(f"{about}.needs", node, NEEDS_KEYS, needed=NEEDS_KEYS if node else ())
    return Needs(node.get("extra", ""), tuple(node.get("modules", ())))


def _scale(about: str, name: str, node: Mapping[str, Any]) -> Scale:
    check_keys(f"{about}.scales.{name}", node, SCALE_KEYS, needed=("seeds", "takes", "cuts"))
    settings, skip = tuple(node.get("settings") or ()), tuple(node.get("skip") or ())
    return Scale(name, node["seeds"], node["takes"], node["cuts"], settings, node.get("grid") or {}, skip, node.get("arms") or {})
