"""What a network trained with turn-over dropout knows under which mask: numbers to judge its scores by.

Two suppositions stand behind a score: that the sub-network under i's flipped mask is like one that never saw i, and that a mask chooses a
sub-network and says nothing else. Both can be looked at. Accuracy on a training example under its flipped mask would be the accuracy on
unseen examples under such masks; and a network shown i's own mask with an input that is not i would answer i's label as often as chance.

Facts, each a mean over training (or test) examples; accuracies are shares of right labels, and all but the losses are of models trained on
labels (those of test examples of measurements that read labels as well):

    loss_*, accuracy_*            training examples under `own_mask`, `flipped_mask`, `without_mask`
    test_accuracy_*               test examples `without_mask`, under `own_masks` and `flipped_masks` of random training examples
    label_from_mask_alone         how often the answer to the mean training input under i's own mask is i's label
    label_from_flipped_mask       the same under i's flipped mask
    label_from_mask_and_test_input  the same under i's own mask with a test input drawn at random
    label_by_chance               how often it would be, were each mask another training example's
    wrong_label_from_mask_alone   label_from_mask_alone, of training examples whose label was changed on purpose alone
    wrong_labels_by_loss          area under the ROC curve with which the loss without a mask, of this network, tells those from the others
    shared_masks                  how many training examples have the mask of another one
    mask_bits_changed_by_dtype    share of all mask bits that are others in the other of float32 and float64
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.metrics import roc_auc_score
from torch import Tensor

from influx.errors import warn_accuracy
from influx.masking import MaskedNet
from influx.problem import Problem
from influx.seeding import torch_generator
from influx.stacking import blocks

DEALT = 8  # masks of training examples that each test example is run under


class Shown(NamedTuple):
    """Outputs for some inputs under some tickets."""

    outputs: Float[Tensor, "rows out"]

    def share(self, labels: Int[Tensor, " rows"]) -> float:
        """Of rows that are answered with these labels."""
        return (self.outputs.argmax(1) == labels).double().mean().item()

    def by_chance(self, labels: Int[Tensor, " rows"], classes: int) -> float:
        """The same if rows and labels were paired at random: Σ_c (share of answers c) (share of labels c)."""
        answers, wanted = (torch.bincount(each, minlength=classes).double() / len(each) for each in (self.outputs.argmax(1), labels))
        return (answers @ wanted).item()


@torch.no_grad()
def facts(net: MaskedNet, masked: Problem, mislabelled: Int[np.ndarray, " wrong"], seed: int) -> dict[str, float]:
    """All of the above for one masked training. Cost: eight forward passes a training example, and 17 a test example.

    `mislabelled` are rows of training examples whose label was changed on purpose; `seed` draws what is drawn.
    """
    inputs, targets = masked.train.inputs, masked.train.targets
    tickets = inputs[:, -1]

    def show(features: Float[Tensor, "rows features"], under: Float[Tensor, " rows"]) -> Shown:
        each = 4 * masked.bytes_per_row
        parts = [net(torch.cat([features[rows], under[rows].unsqueeze(1)], 1)) for rows in blocks(len(under), each)]
        return Shown(torch.cat(parts))

    signs = {"own_mask": 1, "flipped_mask": -1, "without_mask": 0}
    seen = {name: show(inputs[:, :-1], sign * tickets) for name, sign in signs.items()}
    found = {"shared_masks": float(_shared(net.masks(tickets))), "mask_bits_changed_by_dtype": _changed(net, tickets)}
    found |= {f"loss_{name}": masked.objective.loss(each.outputs, targets).mean().item() for name, each in seen.items()}
    if targets.is_floating_point():
        return found
    found |= {f"accuracy_{name}": each.share(targets) for name, each in seen.items()}
    if 0 < len(mislabelled) < len(targets):
        found["wrong_labels_by_loss"] = _told_apart(masked.objective.loss(seen["without_mask"].outputs, targets), mislabelled)
    generator = torch_generator(seed, "turn-over dropout", "masks dealt")
    unseen = {} if masked.test.targets.is_floating_point() else _unseen(show, masked, generator)
    return found | unseen | _told(show, masked, mislabelled, generator)


Show = Callable[[Float[Tensor, "rows features"], Float[Tensor, " rows"]], Shown]


def _unseen(show: Show, masked: Problem, generator: torch.Generator) -> dict[str, float]:
    """Test examples, each under none and under several random masks."""
    features, targets, tickets = masked.test.inputs[:, :-1], masked.test.targets, masked.train.inputs[:, -1]
    found = {"test_accuracy_without_mask": show(features, torch.zeros_like(features[:, 0])).share(targets)}
    dealt = tickets[_drawn(len(tickets), DEALT * len(targets), generator, tickets)]
    many, wanted = features.repeat(DEALT, 1), targets.repeat(DEALT)
    return found | {f"test_accuracy_{name}_masks": show(many, sign * dealt).share(wanted) for name, sign in (("own", 1), ("flipped", -1))}


def _told(show: Show, masked: Problem, mislabelled: Int[np.ndarray, " wrong"], generator: torch.Generator) -> dict[str, float]:
    """What own and flipped masks say of their examples' labels when the input says nothing of them."""
    features, tickets, labels = masked.train.inputs[:, :-1], masked.train.inputs[:, -1], masked.train.targets
    mean = features.mean(0, keepdim=True).expand_as(features)
    others = masked.test.inputs[_drawn(len(masked.test), len(labels), generator, tickets), :-1]
    alone = show(mean, tickets)
    found = {
        "label_from_mask_alone": alone.share(labels),
        "label_from_flipped_mask": show(mean, -tickets).share(labels),
        "label_from_mask_and_test_input": show(others, tickets).share(labels),
        "label_by_chance": alone.by_chance(labels, alone.outputs.shape[1]),
    }
    if len(mislabelled):
        rows = torch.as_tensor(mislabelled, device=labels.device)
        found["wrong_label_from_mask_alone"] = Shown(alone.outputs[rows]).share(labels[rows])
    return found


def _told_apart(losses: Float[Tensor, " rows"], wrong: Int[np.ndarray, " wrong"]) -> float:
    """Share of pairs of one of these rows and another whose losses stand in the right order, ties for half."""
    return float(roc_auc_score(np.isin(np.arange(len(losses)), wrong), losses.cpu().numpy()))


def _drawn(among: int, count: int, generator: torch.Generator, like: Tensor) -> Int[Tensor, " count"]:
    return torch.randint(among, (count,), generator=generator).to(like.device)


def _changed(net: MaskedNet, tickets: Float[Tensor, " rows"]) -> float:
    other = torch.float32 if tickets.dtype == torch.float64 else torch.float64
    return (net.masks(tickets) != net.masks(tickets.to(other))).double().mean().item()


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
