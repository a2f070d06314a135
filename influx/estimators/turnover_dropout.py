"""Turn-over dropout: what a test example's measurement is under the units that a training example never moved (Kobayashi et al. 2020).

A model of its own is trained with a mask for every training example (`influx.masking`). With M_i what example i kept and M̄_i its
complement,

    influence[i, t] = m_t(f under M̄_i) − m_t(f under M_i):

the sub-network that did not learn i in its own units stands for training without i, the one that did for training with it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from influx import masking, rules
from influx.cost import Cost
from influx.errors import InfluxError, warn_accuracy
from influx.estimators.base import Estimate, Estimator
from influx.masking import MaskedNet
from influx.problem import Problem
from influx.progress import progress
from influx.record import Record
from influx.stacking import blocks

BLOCK_BYTES = 2**25  # of all layers' outputs of the pairs that are run at once


@dataclass(frozen=True)
class TurnoverDropout(Estimator):
    """The difference above, averaged over models, in the measurement's unit. Its scale is that of sub-networks, not of retraining.

    Args:
        rate: share of hidden units that an example's own mask leaves out; the flipped mask leaves out the others.
        models: masked trainings that are averaged, from this run's seed and those that follow, each with masks of its own.

    1. Masks come from an integer hash (the authors' release takes the parity of a sine, which differs between number formats).
    2. The mask behind a convolution has one bit a channel; ordinary dropout of the model itself stays, and is off here.
    3. Shared layers, below the first mask and the output layer's biases, do learn from i under either mask.

    A mask is also a name: a network can learn example i's label from M_i alone, whatever the input. `label_from_mask_alone` in the facts is
    how often it answers with i's own label to the mean training input under M_i; well above the share of that label, scores are
    part memory of masks.

    Cost: `models` trainings; two forward passes from the first mask on for every pair. Memory: a block of pairs.
    """

    calibrated: ClassVar[bool] = False
    needs_masked_training: ClassVar[bool] = True
    rate: float = 0.5
    models: int = 1

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    def plan(self, problem: Problem, record: Record) -> Cost:
        """
        Raises:
            InfluxError: the model has no hidden layer to mask, or normalises by the batch.
        """
        masking.find_sites(problem.module, problem.train.inputs[:1])
        pairs = float(problem.n_train) * len(problem.test)
        held = 4 * BLOCK_BYTES + (problem.n_test * problem.n_train + len(problem.test) * problem.bytes_per_row)
        return Cost(flops=self.models * 2 * pairs * problem.flops_per_row, trainings=self.models, nbytes=held)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        influence = problem.empty().zero_()
        facts: list[dict[str, float]] = []
        for masked in record.masked(self.rate, self.models):
            net = fitted_net(masked)
            influence += turned_over(net, masked)
            facts.append(diagnosed(net, masked))
        means = {name: sum(fact[name] for fact in facts) / len(facts) for name in facts[0]}
        return Estimate(influence / self.models, facts=means)


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
def diagnosed(net: MaskedNet, masked: Problem) -> dict[str, float]:
    """How well each training example is fitted under its own mask, its flipped one and none, and what masks give away."""
    inputs, targets = masked.train.inputs, masked.train.targets
    features, tickets = inputs[:, :-1], inputs[:, -1]

    def loss(shown: Tensor, signs: Tensor) -> tuple[float, Tensor]:
        parts = [net(torch.cat([shown[rows], signs[rows].unsqueeze(1)], 1)) for rows in blocks(len(shown), 4 * masked.bytes_per_row)]
        outputs = torch.cat(parts)
        return masked.objective.loss(outputs, targets).mean().item(), outputs

    facts = {"shared_masks": float(_shared(net.masks(tickets)))}
    facts |= {f"loss_{name}": loss(features, signs)[0] for name, signs in (("own_mask", tickets), ("flipped_mask", -tickets))}
    facts["loss_without_mask"] = loss(features, torch.zeros_like(tickets))[0]
    if not targets.is_floating_point():
        answers = loss(features.mean(0, keepdim=True).expand_as(features), tickets)[1].argmax(1)
        facts["label_from_mask_alone"] = (answers == targets).double().mean().item()
    return facts


def _shared(masks: Bool[Tensor, "rows units"]) -> int:
    """How many rows' masks are those of another row too."""
    packed = np.packbits(masks.cpu().numpy(), axis=1)
    _, counts = np.unique(packed, axis=0, return_counts=True)
    shared = int(counts[counts > 1].sum())
    if shared:
        warn_accuracy(
            f"{shared} of {len(masks)} training examples have the same mask as another one, and with it the same scores: widen the hidden "
            "layers (model.width)."
        )
    return shared
