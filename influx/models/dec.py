"""Deep embedded clustering: an encoder, and a centroid for each cluster in the space that it embeds examples in."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor, nn

from influx import rules
from influx.data import Data
from influx.models.base import ACTIVATIONS, Placed, Shape
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

    Training starts from the centroids that k-means finds in the embeddings of the freshly initialised encoder, each number moved by normal
    noise of standard deviation `jitter`. Labels only name the clusters: they are numbered such that as many training examples as possible
    are in the cluster of their class's number (Kuhn 1955).
    """

    depth: int = 1
    width: int = 12
    embedding: int = 12
    activation: str = "tanh"
    jitter: float = 0.0

    def __post_init__(self) -> None:
        rules.check_fields("model", self)

    def module(self, shape: Shape) -> nn.Module:
        sizes = [shape.n_features, *[self.width] * self.depth]
        hidden: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            hidden += [nn.Linear(fan_in, fan_out), ACTIVATIONS[self.activation]()]
        encoder = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], self.embedding))
        return nn.Sequential(encoder, StudentT(shape.n_outputs, self.embedding))

    def place(self, module: nn.Module, data: Data, seed: int) -> None:
        encoder, head = module.get_submodule("0"), module.get_submodule("1")
        assert isinstance(head, StudentT)
        with torch.no_grad():
            embedded = encoder(data.train_inputs)
        means = KMeans(len(head.centroids), n_init=RESTARTS, random_state=derive(seed, "k-means") % 2**32).fit(embedded.cpu().numpy())
        noise = torch.randn(head.centroids.shape, generator=torch_generator(seed, "centroids"), dtype=torch.float64)
        with torch.no_grad():
            head.centroids.copy_(torch.as_tensor(means.cluster_centers_) + self.jitter * noise)
            found = head(embedded).argmax(1).cpu().numpy()
            head.centroids.copy_(head.centroids[matched(found, data.train_targets.cpu().numpy(), len(head.centroids))])


def matched(clusters: np.ndarray, labels: np.ndarray, n: int) -> np.ndarray:
    """For each class the cluster that is matched with it, one to one, such that most examples are in their class's."""
    counts = np.zeros((n, n))
    np.add.at(counts, (labels, clusters), 1)
    return linear_sum_assignment(-counts)[1]
