"""Deep embedded clustering: the model is trained to be surer of the clusters that it already sees (Xie, Girshick & Farhadi 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.special import entr

from influx.data import Data
from influx.errors import InfluxError
from influx.objectives.base import Clustering, Coupled, Likely


@dataclass(frozen=True)
class SelfTraining(Coupled, Clustering, Likely):
    """ℓ_i = KL(p_i ‖ q_i) = Σ_j p_ij log(p_ij / q_ij), in nats; q_i = softmax(outputs) is the soft assignment of example i, p_i its target
    (Xie et al. 2016, section 3.1.3):

        p_ij = (q_ij² / f_j) / Σ_c (q_ic² / f_c),      f_j = Σ_i w_i q_ij.

    Gradients do not pass through p. The model's outputs are the logarithms of the assignments, up to a constant an example: those of
    `model=dec` are Student-t kernels of the distances to its centroids; any classifier's logits will do.

    Args:
        recompute: true makes p anew at every step from the batch (use training.batch_size=null for all examples); false keeps the p of
            the start of training.
    """

    recompute: bool = False

    def prepare(self, data: Data) -> Data:
        if data.n_classes is None:
            raise InfluxError(
                f"objective=dec makes as many clusters as the data set has classes, and {data.name} is for regression: "
                "use a data set with classes (they name the clusters and are not trained on)."
            )
        return data

    def n_outputs(self, data: Data) -> int:
        return data.n_outputs

    def loss(self, outputs: Float[Tensor, " *k batch c"], targets: Float[Tensor, " *k batch c"]) -> Float[Tensor, " *k batch"]:
        return -(targets * outputs.log_softmax(-1)).sum(-1) - entr(targets).sum(-1)

    def reference(self, outputs: Float[Tensor, " *k batch c"], weights: Float[Tensor, " *k batch"]) -> Float[Tensor, " *k c"]:
        return (outputs.softmax(-1) * weights.unsqueeze(-1)).sum(-2)

    def aims(self, outputs: Float[Tensor, " *k batch c"], reference: Float[Tensor, " *k c"]) -> Float[Tensor, " *k batch c"]:
        return (2 * outputs.log_softmax(-1) - reference.log().unsqueeze(-2)).softmax(-1)

    def draw(self, outputs: Float[Tensor, "rows c"], uniform: Float[Tensor, "rows c"]) -> Float[Tensor, "rows c"]:
        """One cluster for certain, drawn from the assignment q by the first of a row's numbers."""
        below = outputs.double().softmax(-1).cumsum(-1)[:, :-1] < uniform[:, :1]
        return torch.nn.functional.one_hot(below.sum(1), outputs.shape[1]).to(outputs)

    def log_assignment(self, outputs: Float[Tensor, " *k batch c"]) -> Float[Tensor, " *k batch c"]:
        return outputs.log_softmax(-1)
