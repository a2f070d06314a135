"""Data Shapley by truncated Monte Carlo (A. Ghorbani & J. Zou, "Data Shapley: equitable valuation of data for machine learning", ICML 2019,
algorithm 1).

The measurement v(S) of the model trained on the examples S alone is a game. Example i's share of v(all) − v(∅) is its mean marginal
contribution over orders π of the examples, `φ_i = E_π[v(before i and i) − v(before i)]`; removing it is predicted to change v by −φ_i.

Departures from the paper:

1. The game is each test example's measurement, n_test games at once on the same models; theirs is one score on the whole test set.
2. "Trained on S alone" is weight 0 for the others in the same batch order, and the objective keeps its divisor n, as everywhere here:
   v(all) is the run's own model, each last step of an order is a leave-one-out change, and v(∅) is what the training makes of no example at
   all, when weight decay alone moves the parameters. (They average over S, and take a random guess for v(∅). In batches of fixed size,
   averaging would multiply gradients by n/|S|: a few wild models of a handful of examples then drown everything.)
3. Truncation looks at all test examples at once: an order ends where the root mean square over them of v(prefix) − v(all) is at most
   `tolerance` x that of v(∅) − v(all). It is looked for at `LOOKS` prefixes, trained first and side by side, so that no training waits
   for another; theirs looks after every example.
4. The number of orders is an option, with its Monte-Carlo standard error reported; theirs stops when values have settled.
5. All models share the run's initialisation and batch order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from influx import rules
from influx.cost import Cost
from influx.errors import InfluxError
from influx.estimators.base import Estimate, Estimator
from influx.problem import Problem
from influx.record import Record
from influx.seeding import numpy_generator

LOOKS = 16  # prefixes of an order at which truncation is decided

Order = Int[np.ndarray, " n"]


@dataclass(frozen=True)
class DataShapley(Estimator):
    """influence[i, t] = −φ_i of the game v = m_t.

    A mean over training sets of every size from 0 to n − 1, not the effect on the model trained on all: the scale is another (a test
    example's influences sum to v(∅) − v(all), but for truncation), and so may be the order. With few orders it is mostly noise; the
    standard error in run.json's `facts` says how much.

    Cost: up to permutations x n_train trainings, side by side. Memory: three matrices of the influence's size, n_train²/2 positions.

    Args:
        permutations: random orders.
        tolerance: where an order is cut off (departure 3); 0 never does.
        most: trainings that are allowed.

    Raises:
        InfluxError: more trainings than `most`.
    """

    calibrated: ClassVar[bool] = False
    permutations: int = 2
    tolerance: float = 0.05
    most: int = 20_000

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    def plan(self, problem: Problem, record: Record) -> Cost:
        trainings = self.permutations * (problem.n_train - 1) + 2
        if trainings > self.most:
            raise InfluxError(
                f"method.permutations={self.permutations} of {problem.n_train} training examples take up to {trainings:,} trainings: lower "
                f"method.permutations or dataset.train_size, or raise method.most={self.most:,}."
            )
        return Cost(trainings=trainings, nbytes=8.0 * (3 * problem.n_train * problem.n_test + problem.n_train**2 / 2))

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        n = problem.n_train
        everything = np.arange(n)
        nothing = record.without([everything], average=False).double()  # [1, n_test]
        full = record.without([everything[:0]], average=False).double()
        total = torch.zeros(n, nothing.shape[1], dtype=torch.float64, device=nothing.device)
        squares, lengths = torch.zeros_like(total), []
        for number in range(self.permutations):
            order = numpy_generator(seed, "permutations", number).permutation(n)
            values = torch.cat([nothing, self._prefixes(record, order, nothing, full)])
            place = torch.from_numpy(order[: len(values) - 1]).to(total.device)
            marginal = values.diff(dim=0)
            total[place] += marginal
            squares[place] += marginal.square()
            lengths.append(len(values) - 1)
        return Estimate(-(total / self.permutations).to(problem.theta), facts=self._facts(total, squares, lengths))

    def _prefixes(
        self, record: Record, order: Order, nothing: Float[Tensor, "1 n_test"], full: Float[Tensor, "1 n_test"]
    ) -> Float[Tensor, "length n_test"]:
        """v of the prefixes of sizes 1, 2, ..., up to where the order is cut off; the last of a whole order is `full`."""
        n = len(order)
        looks = np.unique(np.linspace(0, n, LOOKS + 2).round().astype(int))[1:-1]  # sizes between 0 and n
        known = dict(zip(looks.tolist(), _trained(record, order, looks), strict=True)) if self.tolerance > 0 else {}
        allowed = self.tolerance * _rms(nothing[0] - full[0])
        end = next((size for size, value in known.items() if _rms(value - full[0]) <= allowed), n)
        known = {size: value for size, value in known.items() if size <= end}
        rest = [size for size in range(1, min(end + 1, n)) if size not in known]
        known |= dict(zip(rest, _trained(record, order, rest), strict=True))
        made = [known[size] for size in sorted(known)]
        return torch.stack([*made, full[0]] if end == n else made)

    def _facts(self, total: Tensor, squares: Tensor, lengths: list[int]) -> dict[str, float]:
        count = self.permutations
        facts = {"mean_length_of_an_order": sum(lengths) / count, "root_mean_square": _rms(total / count)}
        if count > 1:
            variance = (squares / count - (total / count).square()).clamp_min(0) / (count - 1)
            facts["monte_carlo_standard_error"] = math.sqrt(variance.mean().item())
        return facts


def _trained(record: Record, order: Order, sizes: Sequence[int] | Int[np.ndarray, " sizes"]) -> list[Float[Tensor, " n_test"]]:
    """v of the prefixes of those sizes, trained side by side."""
    return list(record.without([order[size:] for size in sizes], average=False).double()) if len(sizes) else []


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
