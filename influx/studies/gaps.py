"""The chain from leave-one-out to an influence estimate, and how far apart its neighbours are.

For one removal, in Bae et al. 2022's order, each object answers a question a little different from the one before:

    A cold start      trained from the initialisation without the example
    B warm start      trained on from θ_s without the example          A − B  warm_start
    C proximal        minimised near θ_s, objective as trained         B − C  proximity
    D PBRF            minimised near θ_s, Bregman objective            C − D  non_convergence
    E linearised      one step with the exact inverse of the GGN       D − E  linearisation
    F practical       the same step with another solver                E − F  solver

The first three differences are *gaps*, since the question changes; the last two are *errors*, since only the answer gets worse. By the
triangle inequality their sum bounds the distance from A to F.

1. Departure from Bae et al. 2022, whose text was not at hand: distances are root mean squares over the outputs on the whole training part,
   and Euclidean norms of the parameters, each averaged over the removals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from influx.errors import InfluxError
from influx.studies.comparisons import Comparison, Folders, rows_of
from influx.studies.folders import places

GAPS, ERRORS = ("warm_start", "proximity", "non_convergence"), ("linearisation", "solver")


class Responses(NamedTuple):
    """One seed's part of a job's `responses.npz`."""

    rows: Int[np.ndarray, " n_removed"]
    outputs: Float[np.ndarray, "n_removed n_train out"]
    parameters: Float[np.ndarray, "n_removed p"]
    full_parameters: Float[np.ndarray, " p"]

    @classmethod
    def read(cls, folder: Path, seed: int) -> Responses:
        """
        Raises:
            InfluxError: the job kept no responses.
        """
        path = folder / "responses.npz"
        if not path.is_file():
            raise InfluxError(f"{path} is not there: set retraining.keep=responses for the arms that are compared.")
        with np.load(path, allow_pickle=False) as held:
            rows = np.arange(len(held["outputs"])) if "removed" in held else held["train_index"]
            column = held["seed"].tolist().index(seed)
            return cls(rows, held["outputs"][..., column], held["parameters"][..., column], held["full_parameters"][:, column])

    def at(self, rows: Int[np.ndarray, " common"]) -> Responses:
        """Those of some removals, in that order."""
        chosen = places(self.rows, rows)
        return Responses(rows, self.outputs[chosen], self.parameters[chosen], self.full_parameters)


Distance = Callable[[Responses, Responses], float]


def output_distance(first: Responses, second: Responses) -> float:
    """Root mean square over training outputs, mean over removals; unit: the output's."""
    squares = np.square(first.outputs - second.outputs).mean(axis=(1, 2))  # [n_removed]
    return float(np.sqrt(squares).mean())


def parameter_distance(first: Responses, second: Responses) -> float:
    """Euclidean norm, mean over removals."""
    return float(np.linalg.norm(first.parameters - second.parameters, axis=1).mean())


def own_distance(first: Responses, second: Responses) -> float:
    """As `output_distance`, of the difference less its mean over the removals: a shift that all removals share has no part in it.

    Further training moves every retrained model alike, whoever is left out, and with it no ranking.
    """
    difference = first.outputs - second.outputs
    return float(np.sqrt(np.square(difference - difference.mean(0)).mean(axis=(1, 2))).mean())


DISTANCES: dict[str, Distance] = {"output": output_distance, "own": own_distance, "parameter": parameter_distance}


@dataclass(frozen=True)
class Gaps(Comparison):
    """Distances between neighbours of the chain, a row a seed and distance.

    Statistics, with `output_`, `own_` (what removals do not share) or `parameter_` before each: `warm_start`, `proximity`,
    `non_convergence`, `linearisation`, `solver`; `gaps`, the sum of the first three; `errors`, that of the last two; `errors_over_gaps`;
    `sum`, of all; `total`, the distance of the two ends.

    Args:
        chain: six arms, A to F.

    Raises:
        InfluxError: there are not six arms, or a job kept no responses.
    """

    chain: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.chain) != len(GAPS) + len(ERRORS) + 1:
            raise InfluxError(f"Gaps needs six arms, from cold start to practical estimate; it has {len(self.chain)}.")

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(self.chain)

    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        return rows_of(
            {seed: self._of_seed([Responses.read(folders[arm][seed], seed) for arm in self.chain]) for seed in self.seeds(folders)}
        )

    @staticmethod
    def _of_seed(chain: list[Responses]) -> dict[str, float]:
        shared = sorted(set.intersection(*(set(one.rows.tolist()) for one in chain)))
        if not shared:
            return {}
        objects = [one.at(np.array(shared)) for one in chain]
        found: dict[str, float] = {}
        for kind, distance in DISTANCES.items():
            steps = {name: distance(*pair) for name, pair in zip((*GAPS, *ERRORS), pairwise(objects), strict=True)}
            gaps, errors = sum(steps[name] for name in GAPS), sum(steps[name] for name in ERRORS)
            steps |= {"gaps": gaps, "errors": errors, "sum": gaps + errors, "total": distance(objects[0], objects[-1])}
            if gaps > 0:
                steps["errors_over_gaps"] = errors / gaps
            found |= {f"{kind}_{name}": value for name, value in steps.items()}
        return found


@dataclass(frozen=True)
class Derivative(Comparison):
    """Is the linearised response the derivative of the response?

    Row `derivative_error`: the largest over removals of

        ‖(θ(ε) − θ(−ε))/2 − (θ_linear(ε) − θ_s)‖ / ‖θ_linear(ε) − θ_s‖,     ε = strength/n,

    a central difference, whose own error is of second order in the strength.

    Args:
        plus: arm with a small retraining.strength.
        minus: arm with its negative.
        linear: arm with retraining.response=linear and the strength of `plus`.
    """

    plus: str
    minus: str
    linear: str

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.plus, self.minus, self.linear)

    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        made = []
        for seed in self.seeds(folders):
            plus, minus, linear = (Responses.read(folders[arm][seed], seed) for arm in self.arms)
            shared = np.array(sorted(set(plus.rows.tolist()) & set(minus.rows.tolist()) & set(linear.rows.tolist())))
            expected = linear.at(shared).parameters - linear.full_parameters
            wrong = (plus.at(shared).parameters - minus.at(shared).parameters) / 2 - expected
            relative = np.linalg.norm(wrong, axis=1) / np.linalg.norm(expected, axis=1)  # [n_removed]
            made.append({"seed": seed, "statistic": "derivative_error", "value": float(relative.max())})
        return made
