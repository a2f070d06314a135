"""Turn-over dropout: what a test example's measurement is under the units that a training example never moved (Kobayashi et al. 2020).

A model of its own is trained with a mask for every training example (`influx.masking`). With M_i what example i kept and M̄_i its
complement,

    influence[i, t] = m_t(f under M̄_i) − m_t(f under M_i):

the sub-network that did not learn i in its own units stands for training without i, the one that did for training with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from influx import masking, rules
from influx.cost import Cost
from influx.errors import InfluxError
from influx.estimators import _mask_facts
from influx.estimators.base import Estimate, Estimator, OnItself
from influx.masking import MaskedNet
from influx.masks import Masks
from influx.problem import Problem
from influx.progress import progress
from influx.record import Record
from influx.stacking import blocks

BLOCK_BYTES = 2**25  # of all layers' outputs of the pairs that are run at once


@dataclass(frozen=True)
class TurnoverDropout(Estimator, OnItself):
    """The difference above, averaged over models, in the measurement's unit. Its scale is that of sub-networks, not of retraining.

    Args:
        rate: share of hidden units that an example's own mask leaves out; the flipped mask leaves out the others.
        models: masked trainings that are averaged, from this run's seed and others that no other run has, each with masks of its own.
        masks: "integer" or "sine", how they are drawn (`influx.masks.Masks`).
        fair: masks of fair coins whatever the rate, with the scales of the release.
        sites: numbers of the hidden layers that are masked, from 1 in the order in which they run; null: all.

    1. Masks come from an integer hash. The authors' release takes the parity of a sine, which differs between number formats
       (masks=sine), and masks the first and the third hidden layer (sites=[1,3]).
    2. The mask behind a convolution has one bit a channel, in a transformer one a hidden unit, the same for all tokens; ordinary dropout
       of the model itself stays, and is off here.
    3. Shared layers, below the first mask, and the output layer's biases do learn from i under either mask.

    A mask is also a name: a network can learn example i's label from M_i alone, whatever the input. The facts say how far it has
    (`influx.estimators._mask_facts`): where `label_from_mask_alone` is well above `label_by_chance`, scores are part memory of masks.

    Cost: `models` trainings; two forward passes from the first mask on for every pair (for each training example on itself alone: two
    passes each). Memory: a block of pairs.
    """

    calibrated: ClassVar[bool] = False
    needs_masked_training: ClassVar[bool] = True
    rate: float = 0.5
    models: int = 1
    masks: str = "integer"
    fair: bool = False
    sites: Sequence[int] | None = None

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    @property
    def drawn(self) -> Masks:
        return Masks(self.rate, self.masks, self.fair, None if self.sites is None else tuple(sorted(self.sites)))

    def plan(self, problem: Problem, record: Record) -> Cost:
        """
        Raises:
            InfluxError: the model has no such hidden layer to mask, or normalises by the batch.
        """
        masking.find_sites(problem.module, problem.train.inputs[:1], self.sites)
        pairs = float(problem.n_train) * len(problem.test)
        held = 4 * BLOCK_BYTES + (problem.n_test * problem.n_train + len(problem.test) * problem.bytes_per_row)
        return Cost(flops=self.models * 2 * pairs * problem.flops_per_row, trainings=self.models, nbytes=held)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        return self._averaged(turned_over, record, seed)

    def on_itself(self, problem: Problem, record: Record, seed: int) -> Estimate:
        return self._averaged(turned_over_itself, record, seed)

    def _averaged(self, influence: Callable[[MaskedNet, Problem], Tensor], record: Record, seed: int) -> Estimate:
        """The mean over models, of facts too."""
        made: list[Tensor] = []
        facts: list[dict[str, float]] = []
        for masked in record.masked(self.drawn, self.models):
            net = fitted_net(masked)
            made.append(influence(net, masked))
            facts.append(_mask_facts.facts(net, masked, record.mislabelled, seed))
        means = {name: sum(fact[name] for fact in facts) / len(facts) for name in facts[0]}
        return Estimate(sum(made[1:], made[0]) / self.models, facts=means)


def fitted_net(masked: Problem) -> MaskedNet:
    """A copy of the masked problem's network with its parameters."""
    net = copy.deepcopy(masked.module)
    if not isinstance(net, MaskedNet):
        raise InfluxError(f"{type(net).__name__} was trained without masks: method=turnover_dropout needs a training of its own.")
    net.load_state_dict(masked.state)
    return net.eval()


@torch.no_grad()
def turned_over(net: MaskedNet, masked: Problem) -> Float[Tensor, "n_train n_test"]:
    """m_t under each example's flipped mask minus m_t under its own."""
    influence = masked.empty().zero_()
    tickets, test, whole = masked.train.inputs[:, -1], masked.test, masked.measurement.whole_set
    each = 4 * masked.bytes_per_row
    for columns in blocks(len(test), each, BLOCK_BYTES):
        part = test.take(columns)
        hidden = net.before(part.inputs)
        for rows in progress(blocks(len(tickets), each * len(part), BLOCK_BYTES), "masks, blocks of training examples"):
            own, flipped = (masked.measured(net.after(hidden, sign * tickets[rows]), part.targets) for sign in (1, -1))
            change = flipped - own
            if whole:
                influence[rows] += change.sum(1, keepdim=True) / len(test)
            else:
                influence[rows, columns] = change
    return influence


@torch.no_grad()
def turned_over_itself(net: MaskedNet, masked: Problem) -> Float[Tensor, "n_train 1"]:
    """ℓ_i under i's flipped mask minus ℓ_i under its own."""
    inputs, targets = masked.train.inputs, masked.train.targets
    turned = torch.cat([inputs[:, :-1], -inputs[:, -1:]], dim=1)  # a ticket's sign chooses the mask
    change = [
        masked.objective.loss(net(turned[rows]), targets[rows]) - masked.objective.loss(net(inputs[rows]), targets[rows])
        for rows in blocks(len(targets), 4 * masked.bytes_per_row)
    ]
    return torch.cat(change).unsqueeze(1)
