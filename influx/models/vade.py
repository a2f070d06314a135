"""Variational autoencoders: an encoder to Gaussian codes, a decoder, and a prior of one Gaussian or a mixture of several."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from influx import rules
from influx.data import Data
from influx.errors import InfluxError
from influx.models.base import ACTIVATIONS, Placed, Shape
from influx.models.dec import matched
from influx.models.pretraining import descend, perceptron
from influx.objectives.vade import PARTITION, width
from influx.seeding import derive, torch_generator

RESTARTS = 5  # of the mixture's fit; the best is kept
SURE = 0.1  # variance of a code where training starts, as a share of that within clusters
FLOOR = 0.01  # added to the clusters' variances, of codes whose variance is 1: no cluster shrinks to a point
LEAST = 1e-12  # nats; below it a divergence counts as this, which a square root can be differentiated at


class Prior(nn.Module):
    """Σ_c π_c N(μ_c, diag σ_c²), π = softmax(logits); a single Gaussian is N(0, I) and has no parameters."""

    means: Tensor
    log_variances: Tensor
    logits: Tensor

    def __init__(self, clusters: int, size: int) -> None:
        super().__init__()
        for name, shape in (("means", (clusters, size)), ("log_variances", (clusters, size)), ("logits", (clusters,))):
            if clusters > 1:
                self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
            else:
                self.register_buffer(name, torch.zeros(shape))

    def divergence(self, mean: Float[Tensor, " *batch size"], log_variance: Float[Tensor, " *batch size"]) -> Float[Tensor, " *batch c"]:
        """KL(N(mean, variance) ‖ N(μ_c, σ_c²)) for each c, in nats."""
        ratio = log_variance.unsqueeze(-2) - self.log_variances
        moved = (mean.unsqueeze(-2) - self.means).square() * (-self.log_variances).exp()
        return 0.5 * (ratio.expm1() - ratio + moved).sum(-1)

    def assignment(self, codes: Float[Tensor, " *batch size"]) -> Float[Tensor, " *batch c"]:
        """log p(c | z)."""
        moved = (codes.unsqueeze(-2) - self.means).square() * (-self.log_variances).exp()
        return (self.logits - 0.5 * (self.log_variances + moved).sum(-1)).log_softmax(-1)


class Embedding(nn.Module):
    """What `influx.objectives.vade` says the outputs are, for codes z = μ(x) + σ(x) ε."""

    noise: Float[Tensor, "draws size"]

    def __init__(self, hidden: nn.Module, size: tuple[int, int], decoder: nn.Module, prior: Prior, pairs: int) -> None:
        super().__init__()
        units, codes = size
        self.hidden, self.mean, self.log_variance = hidden, nn.Linear(units, codes), nn.Linear(units, codes)
        self.prior, self.decoder = prior, decoder
        drawn = torch.randn(pairs, codes)
        self.register_buffer("noise", torch.cat([drawn, -drawn]))

    def forward(self, inputs: Float[Tensor, " batch *shape"]) -> Float[Tensor, "batch out"]:
        hidden = self.hidden(inputs)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        codes = mean.unsqueeze(-2) + (0.5 * log_variance).exp().unsqueeze(-2) * self.noise  # [batch, draws, codes]
        each = self.decoder(codes)
        eta = each.mean(-2)
        gaps = [(log_partition(each).mean(-2) - log_partition(eta)).sum(-1) for log_partition in PARTITION.values()]
        log_gamma = self.prior.assignment(codes).logsumexp(-2) - math.log(len(self.noise))
        each_cluster = self.prior.divergence(mean, log_variance) + log_gamma - self.prior.logits.log_softmax(-1)
        apart = (log_gamma.exp() * each_cluster).sum(-1)
        kept = log_gamma if log_gamma.shape[-1] > 1 else log_gamma[..., :0]
        return torch.cat([eta, root(torch.stack([*gaps, apart], -1)), kept], dim=-1)


@dataclass(frozen=True)
class Vade(Placed):
    """For `objective=vade` and `objective=vae`: a multilayer perceptron with `depth` hidden layers of `width` units gives mean and log
    variance of a Gaussian code of `embedding` numbers, and a mirrored one decodes it. Outputs are those of
    `influx.objectives.vade.Bound`, the number of clusters being the objective's.

    Where training starts (Jiang et al. 2017, section 3.1, "pretraining" of their section 4.3), all of it from the seed and without labels:

    1. `pretraining` epochs train encoder and decoder without noise, inputs within [0, 1] by a Bernoulli likelihood and others by a unit
       Gaussian one.
    2. Codes are scaled to mean 0 and variance 1, the decoder undoing it.
    3. A mixture with diagonal covariances is fitted to the means of the codes (expectation-maximisation, scikit-learn). The variance of
       every code is a tenth of that within the clusters.
    4. Clusters are numbered such that as many training examples as possible are in the cluster of their class's number (Kuhn 1955): all
       that labels do here. Without classes they stay as found.

    Departures from the paper:
    1. The bound is estimated from `pairs` pairs of opposite draws ε, −ε that the seed draws once: all examples share them and retraining
       sees the same ones. The loss is then one function of the parameters, which has a gradient and a Hessian. With few draws it is
       optimistic: the decoder can learn to bear those directions alone.
    2. γ is the mean of p(c | z) over those draws (their equation 16 by the same draws), and differentiated through.
    3. All layers are pretrained at once, in place of one pair after another.

    Cost of a forward pass: the encoder's once and the decoder's 2 `pairs` times. Memory: 2 `pairs` d numbers an example.
    """

    depth: int = 1
    width: int = 128
    embedding: int = 10
    activation: str = "relu"
    pairs: int = 4
    pretraining: int = 100

    def __post_init__(self) -> None:
        rules.check_fields("model", self)

    def module(self, shape: Shape) -> nn.Module:
        assigned = shape.n_outputs - width(shape.n_features, 0)
        if assigned < 0 or assigned == 1:
            raise InfluxError("model=vade makes what objective=vade and vae are about: set one of them, or use model=mlp.")
        sizes = [shape.n_features, *[self.width] * self.depth]
        last = [ACTIVATIONS[self.activation]()] if self.depth else []
        hidden = nn.Sequential(nn.Flatten(), *perceptron(sizes, self.activation), *last)
        decoder = nn.Sequential(*perceptron([self.embedding, *sizes[::-1]], self.activation))
        return Embedding(hidden, (sizes[-1], self.embedding), decoder, Prior(max(1, assigned), self.embedding), self.pairs)

    def place(self, module: nn.Module, data: Data, seed: int) -> None:
        assert isinstance(module, Embedding)
        clusters, inputs = len(module.prior.logits), data.train_inputs
        if data.n_train < clusters:
            raise InfluxError(
                f"model=vade looks for {clusters} clusters in {data.n_train} training examples: set dataset.train_size={clusters} or more."
            )
        if self.pretraining:
            autoencode(module, inputs, self.pretraining, seed)
        with torch.no_grad():
            spread(module, inputs)
            if clusters > 1:
                mix(module, inputs, seed)
            within = (module.prior.logits.softmax(0).unsqueeze(1) * module.prior.log_variances.exp()).sum(0)
            module.log_variance.weight.zero_()
            module.log_variance.bias.copy_((SURE * within).log())
            if clusters > 1 and data.n_classes == clusters:
                found = module.prior.assignment(module.mean(module.hidden(inputs))).argmax(1).cpu().numpy()
                order = matched(found, data.train_targets.cpu().numpy(), clusters)
                for value in module.prior.parameters():
                    value.copy_(value[order])


def autoencode(module: Embedding, inputs: Float[Tensor, " n *shape"], epochs: int, seed: int) -> None:
    """Train encoder and decoder to give back the inputs from the mean of the code."""
    low, high = inputs.aminmax()
    log_partition = PARTITION["bernoulli" if low >= 0 and high <= 1 else "gaussian"]

    def loss(rows: Int[Tensor, " rows"]) -> Float[Tensor, ""]:
        x = inputs[rows].flatten(1)
        eta = module.decoder(module.mean(module.hidden(inputs[rows])))
        return (log_partition(eta) - x * eta).sum(1).mean()

    trained = [value for part in (module.hidden, module.mean, module.decoder) for value in part.parameters()]
    descend(trained, loss, len(inputs), epochs, torch_generator(seed, "pretraining"))


def spread(module: Embedding, inputs: Float[Tensor, " n *shape"]) -> None:
    """Give the codes' means mean 0 and variance 1 over the inputs, what the decoder makes of them staying as it is."""
    codes = module.mean(module.hidden(inputs))
    centre, scale = codes.mean(0), codes.std(0).clamp_min(torch.finfo(codes.dtype).eps)
    first = module.decoder.get_submodule("0")
    assert isinstance(first, nn.Linear)
    first.bias.add_(first.weight @ centre)
    first.weight.mul_(scale)
    module.mean.weight.div_(scale.unsqueeze(1))
    module.mean.bias.sub_(centre).div_(scale)


def mix(module: Embedding, inputs: Float[Tensor, " n *shape"], seed: int) -> None:
    """Set the prior to the mixture that is found in the means of the codes."""
    codes = module.mean(module.hidden(inputs)).double().cpu().numpy()
    state = derive(seed, "mixture") % 2**32
    mixture = GaussianMixture(len(module.prior.logits), covariance_type="diag", reg_covar=FLOOR, n_init=RESTARTS, random_state=state)
    found = mixture.fit(codes)
    module.prior.means.copy_(torch.as_tensor(found.means_))
    module.prior.log_variances.copy_(torch.as_tensor(found.covariances_).log())
    module.prior.logits.copy_(torch.as_tensor(found.weights_).log())


def root(nats: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """√(2 nats): of a divergence from a Gaussian its distance in standard deviations, to leading order."""
    return (2 * nats.clamp_min(LEAST)).sqrt()
