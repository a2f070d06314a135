"""Variational deep embedding: the bound against integrals, sampling and formulas written out; its start; its derivatives."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from pairs import blobs
from problems import NOTHING_KEPT, data_of
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, MixtureSameFamily, Normal, kl_divergence
from torch.func import functional_call
from torch.testing import assert_close

from influx.curvature import Curvature
from influx.data import Data
from influx.datasets.digits import Digits
from influx.errors import InfluxError
from influx.experiment import Experiment
from influx.measurements import Loss
from influx.measurements.cluster_loss import ClusterLoss
from influx.measurements.reconstruction_error import ReconstructionError
from influx.models.base import Shape, build
from influx.models.vade import FLOOR, LEAST, SURE, Embedding, Prior, autoencode, root, spread
from influx.models.vade import Vade as Model
from influx.objectives.vade import Bound, Vade, Vae, parts, width
from influx.training.first_order import Sgd

ROUNDING = {"rtol": 1e-10, "atol": 1e-11}  # sums of some hundreds of float64 terms of size one
SEED = 4
SMALL = Model(width=4, embedding=2, activation="tanh", pairs=3, pretraining=3)
MIXED, SINGLE = Vade("bernoulli", 3), Vae("bernoulli")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def unit_blobs() -> Data:
    """The blobs of the pairs, squeezed into [0, 1]."""
    data = blobs()
    return replace(data, train_inputs=data.train_inputs.sigmoid(), test_inputs=data.test_inputs.sigmoid())


def embedding(objective: Bound, features: int = 3, model: Model = SMALL) -> Embedding:
    """With every parameter drawn anew, so that clusters differ."""
    module = build(model, Shape((features,), width(features, objective.assigned), "classification"), SEED).double()
    for at, value in enumerate(module.parameters()):
        value.data = 0.7 * drawn(*value.shape, seed=at)
    assert isinstance(module, Embedding)
    return module


def codes_of(module: Embedding, inputs: Tensor) -> Normal:
    hidden = module.hidden(inputs)
    return Normal(module.mean(hidden), (0.5 * module.log_variance(hidden)).exp())


def written_out(module: Embedding, likelihood: str, x: Tensor, noise: Tensor) -> Tensor:
    """−ELBO of each row for given draws: torch's distributions, equation 12 of Jiang et al. in its first form (their equation 9), a row, a
    draw and a cluster at a time."""
    q, prior = codes_of(module, x), module.prior
    clusters = [Normal(mean, (0.5 * v).exp()) for mean, v in zip(prior.means, prior.log_variances, strict=True)]
    share = prior.logits.softmax(0)
    bounds = []
    for row in range(len(x)):
        own = Normal(q.mean[row], q.stddev[row])
        at = [own.mean + own.stddev * e for e in noise]
        fits = []
        for z in at:
            eta = module.decoder(z)
            fits.append(
                Bernoulli(logits=eta, validate_args=False).log_prob(x[row]).sum()
                if likelihood == "bernoulli"
                else -0.5 * (eta - x[row]).square().sum()
            )
        joint = torch.stack([torch.stack([s.log() + c.log_prob(z).sum() for s, c in zip(share, clusters, strict=True)]) for z in at])
        gamma = joint.softmax(1).mean(0)
        cost = sum(g * (kl_divergence(own, c).sum() + (g / s).log()) for g, s, c in zip(gamma, share, clusters, strict=True))
        bounds.append(cost - torch.stack(fits).mean())
    return torch.stack(bounds)


# ------------------------------------------------------------------------------------------------------------------ the bound


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("objective", [MIXED, SINGLE], ids=["mixture", "one"])
def test_the_loss_is_minus_the_bound_for_the_models_draws(objective, likelihood):
    objective, module = replace(objective, likelihood=likelihood), embedding(objective)
    x = drawn(6, 3).sigmoid()
    assert_close(objective.loss(module(x), objective.targets(x)), written_out(module, likelihood, x, module.noise), **ROUNDING)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_with_many_draws_it_is_the_bound_by_integration(likelihood):
    """One code: E over q by a fine grid, against the average over draws that the model takes."""
    objective = replace(MIXED, likelihood=likelihood)
    module = embedding(objective, model=replace(SMALL, embedding=1, pairs=1))
    x = drawn(5, 3).sigmoid()
    points = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    chance = torch.softmax(-0.5 * points.square(), 0)
    eta = module.decoder((codes_of(module, x).mean + codes_of(module, x).stddev * points).unsqueeze(-1))  # [5, 4001, 3]
    y = x.unsqueeze(1)
    fit = (y * eta - nn.functional.softplus(eta)).sum(-1) if likelihood == "bernoulli" else -0.5 * (eta - y).square().sum(-1)
    z = codes_of(module, x).mean + codes_of(module, x).stddev * points
    joint = module.prior.logits.log_softmax(0) + Normal(module.prior.means[:, 0], (0.5 * module.prior.log_variances[:, 0]).exp()).log_prob(
        z.unsqueeze(-1)
    )
    gamma = (joint.softmax(-1) * chance.unsqueeze(-1)).sum(1)
    expected = (joint * chance.unsqueeze(-1)).sum(1)  # E log p(z, c)
    entropy = 0.5 * (2 * np.pi * np.e * codes_of(module, x).variance[:, 0]).log()
    bound = (fit * chance).sum(1) + (gamma * (expected - gamma.log())).sum(1) + entropy
    halves = torch.from_numpy(norm.ppf((np.arange(20_000) + 0.5) / 20_000)).unsqueeze(1)  # equally likely: as many draws without chance
    module.noise = halves
    assert_close(objective.loss(module(x), x), -bound, rtol=0, atol=2e-3)  # E ε² of the equally likely is 1 − 4e-4


def test_the_bound_is_one():
    """−ELBO ≥ −log p(x), by integrating the joint over a grid of two codes."""
    module = embedding(MIXED)
    x = drawn(4, 3).sigmoid().round()  # pixels that are 0 or 1, so that the likelihood is one
    module.noise = torch.cat([drawn(20_000, 2), -drawn(20_000, 2)])
    edge = np.linspace(-14, 14, 561)
    grid = np.stack(np.meshgrid(edge, edge), -1).reshape(-1, 2)
    prior = module.prior
    means, variances = prior.means.detach().numpy(), prior.log_variances.exp().detach().numpy()
    pieces = [
        multivariate_normal(m, np.diag(v)).logpdf(grid) + s
        for m, v, s in zip(means, variances, prior.logits.log_softmax(0).tolist(), strict=True)
    ]
    eta = module.decoder(torch.from_numpy(grid))
    for row, loss in zip(x, MIXED.loss(module(x), x).tolist(), strict=True):
        fit = (row * eta - nn.functional.softplus(eta)).sum(1).detach().numpy()
        evidence = logsumexp(logsumexp(pieces, axis=0) + fit) + 2 * np.log(edge[1] - edge[0])
        assert loss > -evidence - 0.02  # four standard errors of 40,000 draws
    assert abs(logsumexp(logsumexp(pieces, axis=0)) + 2 * np.log(edge[1] - edge[0])) < 1e-6  # the grid holds all of the prior


def test_divergences_and_assignments_are_torchs():
    prior = Prior(3, 4).double()
    for at, value in enumerate(prior.parameters()):
        value.data = drawn(*value.shape, seed=at)
    mean, log_variance = drawn(5, 4, seed=7), drawn(5, 4, seed=8)
    own = Normal(mean.unsqueeze(1), (0.5 * log_variance).exp().unsqueeze(1))
    theirs = Normal(prior.means, (0.5 * prior.log_variances).exp())
    assert_close(prior.divergence(mean, log_variance), kl_divergence(own, theirs).sum(-1), **ROUNDING)
    mixture = MixtureSameFamily(Categorical(logits=prior.logits), torch.distributions.Independent(theirs, 1))
    joint = prior.logits.log_softmax(0) + theirs.log_prob(mean.unsqueeze(1)).sum(-1)
    assert_close(prior.assignment(mean), joint - mixture.log_prob(mean).unsqueeze(1), **ROUNDING)


def test_one_cluster_is_the_variational_autoencoder():
    """½ Σ (μ² + σ² − 1 − log σ²) of Kingma & Welling (2014, appendix B); a prior without parameters."""
    module, x = embedding(SINGLE), drawn(6, 3).sigmoid()
    q = codes_of(module, x)
    closed = 0.5 * (q.mean.square() + q.variance - 1 - q.variance.log()).sum(1)
    assert_close(0.5 * parts(module(x), 0)[2].squeeze(1).square(), closed, **ROUNDING)
    assert not list(module.prior.parameters())


def test_what_the_outputs_say_beside_the_loss():
    module, x = embedding(MIXED), drawn(6, 3).sigmoid()
    q = codes_of(module, x)
    codes = [q.mean + q.stddev * e for e in module.noise]
    assert_close(MIXED.log_assignment(module(x)).exp(), torch.stack([module.prior.assignment(z).exp() for z in codes]).mean(0), **ROUNDING)
    eta = torch.stack([module.decoder(z) for z in codes]).mean(0)
    assert_close(MIXED.decoded(module(x)), eta.sigmoid(), **ROUNDING)
    assert_close(replace(MIXED, likelihood="gaussian").decoded(module(x)), eta, **ROUNDING)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    assert_close(ClusterLoss().value(module(x), labels, MIXED), -MIXED.log_assignment(module(x))[torch.arange(6), labels], **ROUNDING)
    assert_close(ReconstructionError().value(module(x), x, MIXED), (eta.sigmoid() - x).square().mean(1), **ROUNDING)


def test_draws_come_in_opposite_pairs_from_the_seed():
    shape = Shape((3,), width(3, 3), "classification")
    noise = build(SMALL, shape, 1).noise
    assert noise.shape == (6, 2)
    assert torch.equal(noise[:3], -noise[3:])
    assert torch.equal(noise, build(SMALL, shape, 1).noise)
    assert not torch.equal(noise, build(SMALL, shape, 2).noise)


@pytest.mark.parametrize("objective", [MIXED, replace(MIXED, likelihood="gaussian"), SINGLE])
def test_the_loss_is_convex_in_any_outputs_and_bounded_below(objective):
    size, x = width(3, objective.assigned), drawn(1, 3).sigmoid()
    for seed in range(10):
        curvature = torch.autograd.functional.hessian(lambda o: objective.loss(o.unsqueeze(0), x).sum(), 3 * drawn(size, seed=seed))
        assert torch.linalg.eigvalsh(curvature).min() > -1e-12
        assert objective.loss(100 * drawn(1, size, seed=seed), x).item() > 0


@pytest.mark.parametrize("nats", [0.0, -1e-9])
def test_a_divergence_of_0_has_a_finite_root_and_slope(nats):
    leaf = torch.tensor(nats, dtype=torch.float64, requires_grad=True)
    root(leaf).backward()
    assert root(leaf).item() == pytest.approx((2 * LEAST) ** 0.5)
    assert leaf.grad.item() == 0.0


# ----------------------------------------------------------------------------------------------------------------- derivatives


@cache
def fitted(objective: Bound = MIXED):
    made = Experiment(unit_blobs(), SMALL, Sgd(lr=0.001, epochs=30, batch_size=None, weight_decay=0.01), objective, Loss())
    return made.problem(made.train(SEED, NOTHING_KEPT), SEED)


@pytest.mark.parametrize("objective", [MIXED, SINGLE], ids=["mixture", "one"])
def test_training_gradients_are_differences_of_the_bound_written_out(objective):
    problem, step = fitted(objective), 1e-5
    module = problem.module

    def bound(theta: Tensor) -> Tensor:
        state = {**problem.params, **problem.buffers, **problem.unflatten(theta)}
        copy = embedding(objective)
        copy.load_state_dict({name: value.detach() for name, value in state.items()})
        with torch.no_grad():
            return written_out(copy, "bernoulli", problem.train.inputs[:4], copy.noise)

    made = torch.cat([gradients for _, gradients in problem.train_gradients()])[:4]
    moves = step * torch.eye(problem.n_params, dtype=torch.float64)[::3]  # every third parameter
    differences = torch.stack([(bound(problem.theta + move) - bound(problem.theta - move)) / (2 * step) for move in moves], dim=-1)
    assert module.noise.shape == (6, 2)
    assert_close(made[:, ::3], differences, rtol=1e-7, atol=1e-7)  # truncation h²/6 f''' with f''' up to hundreds


def test_the_hessian_is_the_derivative_of_the_mean_gradient():
    problem, step = fitted(), 1e-6

    def gradient(theta: Tensor) -> Tensor:
        leaf = theta.clone().requires_grad_(True)
        outputs = functional_call(problem.module, {**problem.buffers, **problem.unflatten(leaf)}, (problem.train.inputs,))
        loss = MIXED.loss(outputs, problem.train.inputs).mean() + 0.005 * leaf.square().sum()
        return torch.autograd.grad(loss, leaf)[0]

    dense = Curvature(problem, "hessian", 0.0).dense()
    moves = step * torch.eye(problem.n_params, dtype=torch.float64)
    differences = torch.stack([(gradient(problem.theta + move) - gradient(problem.theta - move)) / (2 * step) for move in moves], dim=-1)
    assert_close(dense, differences, rtol=1e-6, atol=1e-6)  # truncation h²/6 f'''', rounding 1e-16 f'/h


def test_leaving_out_by_weight_0_is_training_without_the_row():
    """From the same start and draws, with the divisor n."""
    made = Experiment(unit_blobs(), SMALL, Sgd(lr=0.001, epochs=10, batch_size=None, weight_decay=0.01), MIXED, ClusterLoss())
    n, out = made.data.n_train, 7
    weights = torch.ones(2, n, dtype=torch.float64)
    weights[1, out] = 0
    whole = made.task(SEED, weights)
    short = made.task(SEED, torch.full((1, n - 1), (n - 1) / n, dtype=torch.float64))
    short = replace(short, examples=whole.examples.take(torch.arange(n) != out))
    full, alone = made.training.fit(whole).params, made.training.fit(short).params
    for name in full:
        assert_close(full[name][1], alone[name][0], rtol=0, atol=1e-11)
    assert max((full[name][1] - full[name][0]).abs().max() for name in full) > 1e-6


# ---------------------------------------------------------------------------------------------------------------------- starts


def placed(data: Data, objective: Bound = MIXED, model: Model = SMALL, seed: int = SEED) -> Embedding:
    shape = Shape(data.input_shape, objective.n_outputs(data), data.task)
    module = build(model, shape, seed).to(data.dtype)
    model.place(module, data, seed)
    assert isinstance(module, Embedding)
    return module


def test_a_start_is_a_function_of_data_and_seed():
    one, again, other = (placed(unit_blobs(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert not torch.equal(one["prior.means"], other["prior.means"])


def test_labels_number_clusters_and_change_nothing_else():
    data, names = unit_blobs(), torch.tensor([2, 0, 1])
    one = placed(data).state_dict()
    other = placed(replace(data, train_targets=names[data.train_targets])).state_dict()
    for name, value in one.items():
        assert torch.equal(other[name][names] if name.startswith("prior") else other[name], value)


def test_clusters_have_their_classes_numbers():
    module, data = placed(unit_blobs(), model=replace(SMALL, pretraining=300)), unit_blobs()
    found = MIXED.log_assignment(module(data.train_inputs)).argmax(1)
    assert (found == data.train_targets).double().mean() > 0.6  # a third by chance; the groups overlap


def test_the_mixture_is_a_fixed_point_of_expectation_maximisation():
    module, data = placed(unit_blobs()), unit_blobs()
    with torch.no_grad():
        codes = module.mean(module.hidden(data.train_inputs))
        resp = module.prior.assignment(codes).exp()
    sizes = resp.sum(0)
    means = resp.T @ codes / sizes.unsqueeze(1)
    variances = (resp.T @ codes.square()) / sizes.unsqueeze(1) - means.square() + FLOOR
    loose = {"rtol": 0.05, "atol": 0.02}  # it stops where a step gains less than 1e-3 nats an example
    assert_close(module.prior.means.data, means, **loose)
    assert_close(module.prior.log_variances.data.exp(), variances, **loose)
    assert_close(module.prior.logits.data.softmax(0), sizes / sizes.sum(), **loose)
    within = (sizes / sizes.sum()).unsqueeze(1) * variances
    assert_close(module.log_variance.bias.data.exp(), SURE * within.sum(0), **loose)


def test_codes_are_scaled_and_decoded_as_before():
    module, x = embedding(MIXED), unit_blobs().train_inputs
    with torch.no_grad():
        before = module.decoder(module.mean(module.hidden(x)))
        spread(module, x)
        codes = module.mean(module.hidden(x))
        assert_close(module.decoder(codes), before, **ROUNDING)
    assert_close(codes.mean(0), torch.zeros(2).double(), **ROUNDING)
    assert_close(codes.std(0), torch.ones(2).double(), **ROUNDING)


@pytest.mark.parametrize("data", [blobs(), unit_blobs()], ids=["gaussian", "bernoulli"])
def test_pretraining_gives_back_the_inputs(data):
    """By the likelihood that the inputs' range says; against the best constant."""
    module = build(replace(SMALL, width=8), Shape((3,), width(3, 3), "classification"), SEED).double()
    x = data.train_inputs
    autoencode(module, x, 2000, SEED)
    with torch.no_grad():
        eta = module.decoder(module.mean(module.hidden(x)))
    made = eta if data is blobs() else eta.sigmoid()
    assert (made - x).square().mean() < 0.35 * x.var(0, correction=0).mean()  # two codes of three dimensions


def test_data_without_classes_has_any_number_of_clusters():
    module = placed(blobs(numbers=True), Vade("gaussian", 4))
    assert module.prior.means.shape == (4, 2)


def test_the_autoencoder_and_the_mixture_start_apart_in_one_process():
    """They share model, data and seed, and are kept as two starts."""
    made = Experiment(unit_blobs(), SMALL, Sgd(), MIXED, Loss())
    assert "prior.means" in dict(made.initial(SEED).named_parameters())
    assert "prior.means" in dict(replace(made, objective=SINGLE).initial(SEED).named_buffers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_has_the_computations_number_type(dtype):
    data = Digits(train_size=40, test_size=3).load().to(dtype, "cpu")
    module = placed(data, Vade())
    assert {value.dtype for value in module.state_dict().values()} == {dtype}
    assert Vade().loss(module(data.test_inputs), Vade().targets(data.test_inputs)).dtype == dtype


# -------------------------------------------------------------------------------------------------------------------- refusals


def test_inputs_outside_the_unit_interval_are_refused():
    for objective in (MIXED, SINGLE):
        with pytest.raises(InfluxError, match=r"likelihood=bernoulli takes inputs in \[0, 1\], and those of tiny reach from -"):
            objective.prepare(blobs())
        assert replace(objective, likelihood="gaussian").prepare(blobs()) is blobs()


def test_clusters_that_classes_cannot_name_are_refused():
    with pytest.raises(
        InfluxError, match=r"objective.clusters=10 does not fit tiny, whose 3 classes name the clusters: set objective.clusters=3"
    ):
        Vade().prepare(unit_blobs())


def test_fewer_examples_than_clusters_are_refused():
    few = data_of(np.full((5, 3), 0.5), np.arange(5) % 2, 2, 2)
    with pytest.raises(InfluxError, match=r"model=vade looks for 3 clusters in 2 training examples: set dataset.train_size=3 or more"):
        placed(few)


@pytest.mark.parametrize("outputs", [3, width(3, 1)])
def test_other_objectives_are_refused(outputs):
    with pytest.raises(InfluxError, match="model=vade makes what objective=vade and vae are about"):
        build(SMALL, Shape((3,), outputs, "classification"), SEED)


@pytest.mark.parametrize(
    ("make", "knob"),
    [
        (lambda: Model(pairs=0), "model.pairs"),
        (lambda: Vade(clusters=1), "objective.clusters"),
        (lambda: Vae("normal"), "objective.likelihood"),
    ],
)
def test_a_knob_out_of_range_is_refused(make, knob):
    with pytest.raises(InfluxError, match=f"{knob}=.* is not possible"):
        make()


# ------------------------------------------------------------------------------------------------------------------ from outside

TINY = (
    "dataset=digits", "dataset.train_size=60", "dataset.test_size=4", "model=vade", "model.width=8", "model.embedding=2",
    "model.pretraining=3", "training=adam", "training.epochs=2", "method=grad_dot", "truth=group", "retraining.groups=3",
    "retraining.group_size=5", "retraining.seeds=1", "resamples=20", "store.dir=null",
)  # fmt: skip


@pytest.mark.parametrize(("objective", "measurement"), [("vade", "cluster_loss"), ("vae", "reconstruction_error")])
def test_the_command_line_estimates_and_retrains(run_influx, tmp_path, objective, measurement):
    ran = run_influx("validate", *TINY, f"objective={objective}", f"measurement={measurement}", "hydra.run.dir=out", cwd=tmp_path)
    assert ran.status == 0, ran.err
    assert (tmp_path / "out" / "run.json").exists()
