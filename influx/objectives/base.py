"""What a training objective is: a per-example loss as a function of the model's outputs, so that a Gauss-Newton matrix can be formed.

The whole objective is `J(θ) = (1/n) Σ_i w_i ℓ(f_θ(x_i), y_i) + (λ/2)‖θ‖²`; an `Objective` gives ℓ. Leading dimensions before the batch
(K models side by side) are allowed everywhere. What ℓ compares outputs with, y, is called its targets; where they come from is what the
families differ in:

* an `Objective` as such reads the data set's own answers (labels, or numbers to predict);
* a `SelfTargeted` one makes them of each example's input (a reconstruction's target is the input);
* a `Coupled` one makes them of the outputs of all examples together (DEC sharpens the clusters that it sees). They are either fixed at
  what the model gives where training starts, or recomputed at every step from the batch's own outputs and held still for its gradient.

What an estimate is about (the measurement) is chosen independently: see `influx.measurements`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from influx.data import Data


class Objective(ABC):
    """ℓ(output, target) for each example; its gradient and curvature come from differentiating it."""

    @abstractmethod
    def loss(self, outputs: Float[Tensor, " *k batch out"], targets: Shaped[Tensor, " *k batch *target"]) -> Float[Tensor, " *k batch"]:
        """Per-example loss, in the objective's unit (nats for cross-entropy, squared target units for squared error)."""


class Unlabelled(Objective):
    """An objective that reads no labels, so that data sets of any kind will do."""

    @abstractmethod
    def prepare(self, data: Data) -> Data:
        """The data as this objective's models read it; most return it as it is.

        Raises:
            InfluxError: the data set has nothing that this objective can be trained on.
        """

    @abstractmethod
    def n_outputs(self, data: Data) -> int:
        """Width of the model's output for prepared data."""


class SelfTargeted(Unlabelled):
    """One whose targets are a function of each example's own input."""

    @abstractmethod
    def targets(self, inputs: Shaped[Tensor, " batch *shape"]) -> Shaped[Tensor, " batch *target"]:
        """What each example's loss compares the outputs with; its numbers are floating-point."""


class Coupled(Unlabelled):
    """One whose examples are coupled: their targets depend on the outputs of the others.

    `recompute` false fixes the targets at the start of training, so that the objective is a sum over examples and leaving one out is
    weight 0. With true every step makes them anew from the batch as it stands, an example of weight 0 having no part in them; estimates
    then take the targets as they are under the trained model and hold them still.
    """

    recompute: bool

    @abstractmethod
    def reference(self, outputs: Float[Tensor, " *k batch out"], weights: Float[Tensor, " *k batch"]) -> Float[Tensor, " *k *reference"]:
        """What the examples have in common (cluster sizes, a bank of keys), from the outputs of all of them; only whether a weight is 0,
        or the weights' proportions, may matter."""

    @abstractmethod
    def aims(
        self, outputs: Float[Tensor, " *k batch out"], reference: Float[Tensor, " *k *reference"]
    ) -> Float[Tensor, " *k batch *target"]:
        """The targets of examples with these outputs."""


class Clustering(ABC):
    """What an objective adds whose outputs say which of several clusters an example is in."""

    @abstractmethod
    def log_assignment(self, outputs: Float[Tensor, " *k batch out"]) -> Float[Tensor, " *k batch clusters"]:
        """log q(cluster | example), up to a constant an example."""


class Decoding(ABC):
    """What an objective adds whose outputs hold a reconstruction of the input."""

    @abstractmethod
    def decoded(self, outputs: Float[Tensor, " *k batch out"]) -> Float[Tensor, " *k batch features"]:
        """The reconstruction, in the input's unit."""


class Likely(ABC):
    """What an objective adds whose loss is minus the log-likelihood of its targets given the outputs, up to a constant: targets can then be
    drawn from what the model says itself, as the true Fisher matrix has them."""

    @abstractmethod
    def draw(self, outputs: Float[Tensor, "rows out"], uniform: Float[Tensor, "rows out"]) -> Float[Tensor, " rows *target"]:
        """Targets drawn from the likelihood, by numbers that are uniform in [0, 1)."""


def standing(
    objective: Objective,
    outputs: Float[Tensor, " *k batch out"],
    targets: Shaped[Tensor, " batch *target"],
    weights: Float[Tensor, " *k batch"],
) -> Shaped[Tensor, " *k batch *target"]:
    """The targets of a step: those given, or those that a coupled objective recomputes from the batch's outputs, for each model its own."""
    if not (isinstance(objective, Coupled) and objective.recompute):
        return targets
    with torch.no_grad():
        seen = outputs.detach()
        return objective.aims(seen, objective.reference(seen, weights))


def class_scores(objective: Objective, outputs: Float[Tensor, " *k batch out"]) -> Float[Tensor, " *k batch classes"] | None:
    """Logits of the classes or clusters; None when the outputs are about something else."""
    if isinstance(objective, Clustering):
        return objective.log_assignment(outputs)
    return None if isinstance(objective, Unlabelled) else outputs
