"""Deep embedded clustering: an encoder, and a centroid for each cluster in the space that it embeds examples in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor, nn

from influx import rules
from influx.data import Data
from influx.errors import InfluxError
from influx.models.base import Placed, Shape
from influx.models.pretraining import autoencode, descend, perceptron
from influx.objectives.self_training import SelfTraining
from influx.seeding import derive, torch_generator

RESTARTS = 20  # of k-means; the best is kept


class StudentT(nn.Module):
    """log(1 + ‖z − μ_j‖²)⁻¹ for each centroid μ_j: the kernel of Student's t with one degree of freedom (Xie et al. 2016, equation 1)."""

    def __init__(self, clusters: int, width: int) -> None:
        super().__init__()
        self.centroids = nn.Parameter(torch.zeros(clusters, width))

    def forward(self, embedded: Float[Tensor, " *batch width"]) -> Float[Tensor, " *batch clusters"]:
        return -(embedded.unsqueeze(-2) - self.centroids).square().sum(-1).log1p()


@dataclass(frozen=True)
class Dec(Placed):
    """A multilayer perceptron with `depth` hidden layers of `width` units embeds an example in `embedding` dimensions; outputs are
    log(1 + ‖z − μ_j‖²)⁻¹ for each of as many centroids μ_j as the data set has classes, so that their softmax is the assignment q.

    Where training starts (Xie et al. 2016, section 3.2), all of it from the seed and without labels:

    1. `pretraining` epochs train encoder and a mirrored decoder to give back the inputs; 0: the encoder is as initialised.
    2. The centroids are those that k-means finds in the embeddings, each number moved by normal noise of standard deviation `jitter`.
    3. `warm_up` rounds of self-training: each makes the targets of `objective=dec` anew from all examples and trains one epoch for them.
       Targets that are fixed at the start of training are then surer ones.
    4. Clusters are numbered such that as many training examples as possible are in the cluster of their class's number (Kuhn 1955): all
       that labels do here.

    Departure from the code released with Silva et al. 2022, which sets a depth of 1, ReLU, a jitter of 0.5 and no more: there each
    Gaussian has the cluster of its true mean, so that two may have the same; here the numbering is one to one.

    Cost of a start: a forward and a backward pass an example and epoch (2 s for 20 epochs of 4,000 images of 784 pixels at width
    128, on one core), and k-means.
    """

    depth: int = 1
    width: int = 12
    embedding: int = 12
    activation: str = "tanh"
    pretraining: int = 0
    jitter: float = 0.0
    warm_up: int = 0

    def __post_init__(self) -> None:
        rules.check_fields("model", self)

    def module(self, shape: Shape) -> nn.Module:
        shape.require_task("dec", "classification", "mlp")
        encoder = nn.Sequential(nn.Flatten(), *perceptron(self._sizes(shape.n_features), self.activation))
        return nn.Sequential(encoder, StudentT(shape.n_outputs, self.embedding))

    def place(self, module: nn.Module, data: Data, seed: int) -> None:
        encoder, head = module.get_submodule("0"), module.get_submodule("1")
        assert isinstance(head, StudentT)
        clusters, inputs = len(head.centroids), data.train_inputs
        if data.n_train < clusters:
            raise InfluxError(
                f"model=dec looks for {clusters} clusters in {data.n_train} training examples: set dataset.train_size={clusters} or more."
            )
        if self.pretraining:
            autoencode(encoder, self._sizes(inputs[0].numel())[::-1], self.activation, inputs, self.pretraining, seed)
        with torch.no_grad():
            head.centroids.copy_(self._centroids(encoder(inputs), clusters, seed))
        if self.warm_up:
            sharpen(module, inputs, self.warm_up, seed)
        with torch.no_grad():
            found = module(inputs).argmax(1).cpu().numpy()
            head.centroids.copy_(head.centroids[matched(found, data.train_targets.cpu().numpy(), clusters)])

    def _sizes(self, features: int) -> list[int]:
        return [features, *[self.width] * self.depth, self.embedding]

    def _centroids(self, embedded: Float[Tensor, "n width"], clusters: int, seed: int) -> Float[Tensor, "clusters width"]:
        means = KMeans(clusters, n_init=RESTARTS, random_state=derive(seed, "k-means") % 2**32).fit(embedded.cpu().numpy())
        noise = torch.randn(means.cluster_centers_.shape, generator=torch_generator(seed, "centroids"), dtype=torch.float64)
        return torch.as_tensor(means.cluster_centers_) + self.jitter * noise


def sharpen(module: nn.Module, inputs: Float[Tensor, " n *shape"], rounds: int, seed: int) -> None:
    """Self-training (Xie et al. 2016, section 3.1): each round makes the targets anew from all examples and trains one epoch for them."""
    objective = SelfTraining()
    aims: list[Tensor] = []

    def renew() -> None:
        with torch.no_grad():
            outputs = module(inputs)
            aims[:] = [objective.aims(outputs, objective.reference(outputs, torch.ones_like(outputs[:, 0])))]

    def loss(rows: Int[Tensor, " rows"]) -> Float[Tensor, ""]:
        return objective.loss(module(inputs[rows]), aims[0][rows]).mean()

    descend(list(module.parameters()), loss, len(inputs), rounds, torch_generator(seed, "warm-up"), renew)


def matched(clusters: np.ndarray, labels: np.ndarray, n: int) -> np.ndarray:
    """For each class the cluster that is matched with it, one to one, such that most examples are in their class's."""
    counts = np.zeros((n, n))
    np.add.at(counts, (labels, clusters), 1)
    return linear_sum_assignment(-counts)[1]
