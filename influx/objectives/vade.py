"""Variational bounds: an autoencoder that says how sure it is of its codes (Kingma & Welling 2014), and one that finds clusters among them
(variational deep embedding; Jiang, Zheng, Tan, Tang & Zhou 2017)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import softplus

from influx import rules
from influx.data import Data
from influx.errors import InfluxError
from influx.objectives.base import Clustering, Decoding, SelfTargeted

PARTITION: dict[str, Callable[[Tensor], Tensor]] = {  # A(η) of log p(x | η) = xη − A(η), up to what x alone decides
    "bernoulli": softplus,
    "gaussian": lambda eta: 0.5 * eta.square(),
}


class Bound(SelfTargeted, Decoding):
    """ℓ = −ELBO(x), in nats (Jiang et al. 2017, equation 12; of the unit Gaussian likelihood without its constant (d/2) log 2π):

        Σ_i [A(η̄_i) − x_i η̄_i] + ½u² + ½t²,      ½t² = KL(q(z, c | x) ‖ p(z, c)) = Σ_c γ_c KL(q(z | x) ‖ p(z | c)) + KL(γ ‖ π)

    with x the d features, η̄ the mean over draws of the code of what the decoder gives (logits of a Bernoulli likelihood, means of a unit
    Gaussian one), ½u² the mean over draws of Σ_i A(η_i) less Σ_i A(η̄_i) (so that the first two terms are −E log p(x | z)), γ the assignment
    q(c | x) and π the clusters' shares.

    The model's outputs are (η̄ [d], u under each likelihood [2], t [1], log γ [C, or none]). Roots of divergences make the loss convex in
    the outputs, so that its Gauss-Newton matrix has no negative eigenvalues, and bounded below whatever they are. `model=vade` makes them
    of an encoder, a decoder and a prior; of an MLP's outputs the loss reads η̄, one u and t.
    """

    likelihood: str

    @property
    @abstractmethod
    def assigned(self) -> int:
        """Of how many clusters the outputs say how likely they are; 0 where there is but one."""

    def prepare(self, data: Data) -> Data:
        if self.likelihood == "bernoulli":
            low, high = (float(edge) for edge in torch.cat([data.train_inputs, data.test_inputs]).aminmax())
            if low < 0 or high > 1:
                raise InfluxError(
                    f"objective.likelihood=bernoulli takes inputs in [0, 1], and those of {data.name} reach from {low:.3g} to {high:.3g}: "
                    "use dataset.standardize=false where that helps, or objective.likelihood=gaussian."
                )
        if isinstance(self, Clustering) and data.n_classes not in (None, self.assigned):
            raise InfluxError(
                f"objective.clusters={self.assigned} does not fit {data.name}, whose {data.n_classes} classes name the clusters: set "
                f"objective.clusters={data.n_classes}."
            )
        return data

    def n_outputs(self, data: Data) -> int:
        return width(data.train_inputs[0].numel(), self.assigned)

    def targets(self, inputs: Shaped[Tensor, " batch *shape"]) -> Float[Tensor, "batch features"]:
        return inputs.flatten(1)

    def loss(self, outputs: Float[Tensor, " *k batch out"], targets: Float[Tensor, " batch features"]) -> Float[Tensor, " *k batch"]:
        eta, spread, apart, _ = parts(outputs, self.assigned)
        own = spread[..., tuple(PARTITION).index(self.likelihood)]
        fit = (PARTITION[self.likelihood](eta) - targets * eta).sum(-1)
        rest = 0.5 * targets.square().sum(-1) if self.likelihood == "gaussian" else 0.0  # of x alone: ½‖η̄ − x‖² in all
        return fit + rest + 0.5 * own.square() + 0.5 * apart.square().squeeze(-1)

    def decoded(self, outputs: Float[Tensor, " *k batch out"]) -> Float[Tensor, " *k batch features"]:
        """The likelihood's mean at η̄."""
        eta = parts(outputs, self.assigned)[0]
        return eta.sigmoid() if self.likelihood == "bernoulli" else eta


@dataclass(frozen=True)
class Vae(Bound):
    """The bound of a variational autoencoder: one cluster, whose prior N(0, I) is not trained.

    Args:
        likelihood: bernoulli (inputs in [0, 1]) or gaussian (of variance 1; any inputs).
    """

    likelihood: str = "bernoulli"

    def __post_init__(self) -> None:
        rules.check_fields("objective", self)

    @property
    def assigned(self) -> int:
        return 0


@dataclass(frozen=True)
class Vade(Bound, Clustering):
    """The bound of variational deep embedding, whose prior is a mixture of Gaussians that is trained with the rest.

    Args:
        likelihood: bernoulli (inputs in [0, 1]) or gaussian (of variance 1; any inputs).
        clusters: Gaussians of the prior; where the data has classes as many as those, since classes name the clusters.
    """

    likelihood: str = "bernoulli"
    clusters: int = 10

    def __post_init__(self) -> None:
        rules.check_fields("objective", self)

    @property
    def assigned(self) -> int:
        return self.clusters

    def log_assignment(self, outputs: Float[Tensor, " *k batch out"]) -> Float[Tensor, " *k batch clusters"]:
        return parts(outputs, self.assigned)[3].log_softmax(-1)


def width(features: int, assigned: int) -> int:
    """How many numbers say all that the bound needs."""
    return features + len(PARTITION) + 1 + assigned


def parts(outputs: Float[Tensor, " *k batch out"], assigned: int) -> tuple[Tensor, ...]:
    """(η̄ [d], u [2], t [1], log γ [assigned]) of each example."""
    features = outputs.shape[-1] - width(0, assigned)
    return outputs.split([features, len(PARTITION), 1, assigned], dim=-1)
