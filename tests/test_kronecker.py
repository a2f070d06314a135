"""K-FAC and EK-FAC against dense float64 algebra: factors by hand, Kronecker products formed in full, inverses by `torch.linalg`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from problems import BatchNormNet, answers, cast, experiment, output_hessian, problem
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from influx import kronecker, stacking
from influx.curvature import Curvature
from influx.errors import InfluxError, NumericalError
from influx.estimators.inverse_curvature import InverseCurvature
from influx.kronecker import drawn, eigenbases, root
from influx.measurements import Margin, MeanLoss
from influx.objectives import CrossEntropy, Objective, SquaredError
from influx.pairing import Pairing, plan
from influx.problem import Examples, Problem
from influx.solvers import factored
from influx.solvers.ekfac import Ekfac
from influx.solvers.factored import FactoredSolver
from influx.solvers.kfac import Kfac

SOLVERS = [Kfac(), Ekfac()]
NETS = ["ridge", "softmax", "mlp", "conv"]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=["kfac", "ekfac"])


# ------------------------------------------------------------------------------------------------------- an independent reference


@dataclass(frozen=True)
class Reference:
    """One layer by hand: A, S and the pseudo-gradients as matrices [n, copies, out, in + 1]."""

    a: Tensor
    s: Tensor
    gradients: Tensor


def references(fitted: Problem, kind: str) -> list[Reference]:
    """With `retain_grad` on each layer's result and torch's own unfold; roots of the output Hessian by its eigenvectors."""
    module, n = fitted.module, fitted.n_train
    layers = [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    given: list[Tensor] = []
    results: list[Tensor] = []

    def hook(_, inputs, result):
        given.append(inputs[0].detach())
        result.retain_grad()
        results.append(result)

    handles = [layer.register_forward_hook(hook) for layer in layers]
    state = {**{key: value.detach().requires_grad_() for key, value in fitted.params.items()}, **fitted.buffers}
    outputs = functional_call(module, state, (fitted.train.inputs,))
    for handle in handles:
        handle.remove()
    if kind == "ggn":
        values, vectors = torch.linalg.eigh(output_hessian(outputs.detach(), fitted.train.targets))
        seeds = list((vectors * values.clamp_min(0).sqrt().unsqueeze(1)).unbind(2))
    else:
        loss = nn.functional.cross_entropy(outputs, fitted.train.targets, reduction="sum")
        seeds = list(torch.autograd.grad(loss, outputs, retain_graph=True))
    made = []
    for layer, x, z in zip(layers, given, results, strict=True):
        h = nn.functional.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride).mT if x.dim() == 4 else x.unsqueeze(1)
        h = torch.cat([h, torch.ones_like(h[..., :1])], dim=2)
        deltas = torch.stack([torch.autograd.grad(outputs, z, seed, retain_graph=True)[0] for seed in seeds], 1)
        deltas = deltas.flatten(3) if x.dim() == 4 else deltas.unsqueeze(3)  # [n, copies, out, places]
        a = torch.einsum("npk,npl->kl", h, h) / n
        s = torch.einsum("ncop,ncqp->oq", deltas, deltas) / (n * h.shape[1])
        made.append(Reference(a, s, torch.einsum("ncop,npk->ncok", deltas, h)))
    return made


def dense_layer(reference: Reference, solver: FactoredSolver) -> Tensor:
    """C of one layer, [out in, out in], written out."""
    if not solver.corrected:
        return torch.kron(reference.s, reference.a)
    basis = torch.kron(torch.linalg.eigh(reference.s)[1], torch.linalg.eigh(reference.a)[1])
    flat = reference.gradients.flatten(2).flatten(0, 1)  # [n copies, out in]
    return basis @ torch.diag((flat @ basis).square().sum(0) / len(reference.gradients)) @ basis.T


def dense_inverse(fitted: Problem, kind: str, solver: FactoredSolver, damping: float | str) -> Tensor:
    """A⁻¹ over all parameters, in θ's order."""
    inverse = torch.zeros(fitted.n_params, fitted.n_params, dtype=torch.float64)
    numbers, start, names = {}, 0, list(fitted.params)
    for name in names:
        count = fitted.params[name].numel()
        numbers[name] = torch.arange(start, start + count).view(fitted.params[name].shape[0], -1)
        start += count
    for at, reference in enumerate(references(fitted, kind)):
        matrix = dense_layer(reference, solver)
        delta = 0.1 * matrix.trace() / len(matrix) if damping == "auto" else damping
        place = torch.cat([numbers[names[2 * at]], numbers[names[2 * at + 1]]], 1).flatten()
        shift = (fitted.weight_decay + delta) * torch.eye(len(matrix), dtype=torch.float64)
        inverse[place.unsqueeze(1), place] = torch.linalg.inv(matrix + shift)
    return inverse


def wanted(name: str, kind: str, solver: FactoredSolver, damping: float | str) -> Tensor:
    inverse = dense_inverse(problem(name), kind, solver, damping)
    return answers(name).train_gradients @ inverse @ answers(name).test_gradients.T / problem(name).n_train


def run(fitted: Problem, solver: FactoredSolver, kind: str = "ggn", damping: float | str = "auto", seed: int = 0) -> Tensor:
    return InverseCurvature(solver, kind, damping).estimate(fitted, None, seed).influence


def near(one: Tensor, other: Tensor, share: float = 1e-9) -> None:
    """float64 algebra in another order, relative to the largest entry; eigenvectors are compared through what they do, never themselves."""
    assert_close(one, other, rtol=0, atol=share * other.abs().max().item())


# ------------------------------------------------------------------------------------------------------------------ the factors


@pytest.mark.parametrize("kind", ["ggn", "fisher"])
@pytest.mark.parametrize("name", ["softmax", "mlp", "conv"])
def test_kfac_is_the_kronecker_product_of_the_factors(name, kind):
    made = eigenbases([problem(name)], kind, labels="empirical", corrected=False, seed=0)
    for basis, reference in zip(made, references(problem(name), kind), strict=True):
        vectors = torch.kron(basis.outputs, basis.inputs)
        near(vectors @ torch.diag(basis.values.flatten()) @ vectors.T, torch.kron(reference.s, reference.a))


@pytest.mark.parametrize("name", NETS)
def test_corrected_eigenvalues_are_the_curvatures_own_diagonal_in_the_eigenvectors(name):
    fitted = problem(name)
    curvature = answers(name).ggn - fitted.weight_decay * torch.eye(fitted.n_params, dtype=torch.float64)
    for basis in eigenbases([fitted], "ggn", labels="empirical", corrected=True, seed=0):
        place = basis.layer.gather(torch.arange(fitted.n_params).unsqueeze(0)).flatten()
        vectors = torch.kron(basis.outputs, basis.inputs)
        near((vectors * (curvature[place][:, place] @ vectors)).sum(0), basis.values.flatten())


@each_solver
@pytest.mark.parametrize("damping", ["auto", 0.03])
@pytest.mark.parametrize("kind", ["ggn", "fisher"])
@pytest.mark.parametrize("name", ["softmax", "mlp", "conv"])
def test_influence_is_dense_algebra(name, kind, damping, solver):
    near(run(problem(name), solver, kind, damping), wanted(name, kind, solver, damping))


@each_solver
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_solve_is_the_dense_inverse(name, solver):
    fitted = problem(name)
    solution = solver.solve(Curvature(fitted, "ggn", 0.02), torch.eye(fitted.n_params, dtype=torch.float64), 0)
    inverse = dense_inverse(fitted, "ggn", solver, 0.02)
    near(solution.x, inverse)
    assert solution.iterations.tolist() == [0] * fitted.n_params
    assert bool(solution.converged.all())
    assert solution.residual.max() < 1e-12  # rounding of two rotations
    assert solution.effective_damping == pytest.approx(fitted.weight_decay + 0.02)
    assert solution.smallest_eigenvalue == pytest.approx(1 / torch.linalg.eigvalsh(inverse)[-1].item())


@each_solver
def test_one_output_has_no_approximation(solver):
    """Squared error of a linear model: S = 1 and A is the whole GGN, here also the Hessian."""
    near(run(problem("ridge"), solver, damping=0.01), answers("ridge").influence("hessian", 0.01))


def test_ekfac_is_nearer_to_the_curvature_than_kfac():
    """By construction, in the Frobenius norm (George et al. 2018, section 3.1)."""
    for reference in references(problem("mlp"), "ggn"):
        flat = reference.gradients.flatten(2).flatten(0, 1)
        own = flat.T @ flat / len(reference.gradients)
        kfac, ekfac = (dense_layer(reference, solver) for solver in SOLVERS)
        assert (ekfac - own).norm() < (kfac - own).norm()


def test_auto_damping_is_a_tenth_of_each_layers_mean_eigenvalue():
    made = InverseCurvature(Ekfac(), "ggn", "auto").estimate(problem("mlp"), None, 0).solves
    means = [
        reference.gradients.square().sum((1, 2, 3)).mean() / reference.gradients[0, 0].numel()
        for reference in references(problem("mlp"), "ggn")
    ]
    assert [row["damping"] for row in made] == pytest.approx([0.02 + 0.1 * mean.item() for mean in means])
    assert [row["iterations"] for row in made] == [0, 0]
    assert max(row["residual"] for row in made) < 1e-12


# ------------------------------------------------------------------------------------------------------------- pseudo-gradients


def test_roots_give_their_matrices_back_where_one_class_is_nearly_certain():
    logits = torch.tensor([[0.0, 1.0, -1.0], [40.0, 0.0, 3.0], [18.0, -20.0, 0.5]])
    p = logits.double().softmax(1)
    exact = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    exact.diagonal(dim1=1, dim2=2)[:] = p * torch.stack([p[:, [1, 2]].sum(1), p[:, [0, 2]].sum(1), p[:, [0, 1]].sum(1)], 1)
    made = root(exact.float()).double()
    error = (made @ made.mT - exact).abs().amax((1, 2)) / exact.abs().amax((1, 2))
    assert error.max() < 1e-6  # a few float32 roundings, relative to each row's own size (1e-18 in the second)


def test_labels_are_drawn_from_the_models_prediction():
    grid = (torch.arange(20_000, dtype=torch.float64).unsqueeze(1) + 0.5) / 20_000  # every quantile once: no sampling error but the grid's
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0]])
    labels = drawn(CrossEntropy(), logits.expand(20_000, -1), torch.zeros(20_000, dtype=torch.int64), grid)
    assert_close(labels.bincount() / 20_000, logits[0].softmax(0), rtol=0, atol=2e-4)
    numbers = drawn(SquaredError(), torch.full((20_000, 1), 7.0, dtype=torch.float64), torch.zeros(20_000, dtype=torch.float64), grid)
    assert numbers.mean().item() == pytest.approx(7.0, abs=1e-9)
    assert numbers.var().item() == pytest.approx(1.0, abs=2e-3)  # the tails beyond the grid


def test_sampled_labels_give_the_ggn_in_expectation():
    """tr(C) of the softmax regression: the mean over draws against the exact one, within five standard errors."""
    fitted = problem("softmax")
    exact = eigenbases([fitted], "ggn", labels="empirical", corrected=True, seed=0)[0].values.sum()
    draws = torch.stack([eigenbases([fitted], "fisher", labels="sampled", corrected=True, seed=s)[0].values.sum() for s in range(200)])
    assert abs(draws.mean() - exact) < 5 * draws.std() / 200**0.5
    assert draws.std() > 0.01 * exact


def test_float32_on_well_fitted_rows():
    """Weights times 12: most labels have p = 1 in float32, where p − 1 would be 0."""
    fitted = problem("softmax")
    sharp = replace(fitted, params={key: 12 * value for key, value in fitted.params.items()}, weight_decay=1e-6)
    double, single = run(sharp, Ekfac()), run(cast(sharp, torch.float32), Ekfac())
    share = (single.double() - double).norm(dim=1) / double.norm(dim=1)
    assert share.max() < 1e-3  # each row by itself, however small: float32's eigenvectors and outputs


# -------------------------------------------------------------------------------------------------------------- blocks and plans


@each_solver
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_blocks_and_memory_change_nothing(name, solver, monkeypatch):
    whole = run(problem(name), solver)
    for held in (0.0, 1e-5):
        monkeypatch.setattr(kronecker, "HELD", held)
        monkeypatch.setattr(stacking, "BLOCK_BYTES", 20_000)
        near(run(problem(name), solver), whole)


@each_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["softmax", "mlp", "conv"])
def test_a_planned_sum_is_the_sum(name, dtype, solver, monkeypatch):
    fitted = cast(problem(name), dtype)
    direct = run(fitted, solver)
    monkeypatch.setattr(factored, "WORTH", 0)
    monkeypatch.setattr(factored, "VALUES", 0)
    near(run(fitted, solver), direct, 50 * torch.finfo(dtype).eps)


def pairs(rows: int, columns: int, out: int, wide: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Factors that decay as eigenvectors' do, and weights 1/(Λ + δ) with noise in Λ."""
    draw = torch.Generator().manual_seed(3)
    fall_out, fall_in = (torch.logspace(-4, 0, size, dtype=torch.float64) for size in (out, wide))
    d, c = (torch.randn(count, out, generator=draw, dtype=torch.float64) * fall_out for count in (rows, columns))
    a, b = (torch.randn(count, wide, generator=draw, dtype=torch.float64) * fall_in for count in (rows, columns))
    values = fall_out.square().unsqueeze(1) * fall_in.square() * torch.rand(out, wide, generator=draw, dtype=torch.float64)
    return 1 / (values + 1e-3), d, a, c, b


@pytest.mark.parametrize("columns", [3, 50])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-12])
def test_a_plan_keeps_its_tolerance(tolerance, columns):
    weights, d, a, c, b = pairs(70, columns, 40, 90)
    sizes = [(p.square().mean(0).sqrt(), q.square().mean(0).sqrt()) for p, q in ((d, a), (c, b))]
    blocks = plan(weights, sizes[0], sizes[1], tolerance)
    scores = torch.zeros(70, columns, dtype=torch.float64)
    Pairing(weights, c, b, blocks).add(d, a, scores)
    exact = torch.einsum("io,ik,ok,to,tk->it", d, a, weights, c, b)
    assert (scores - exact).norm() / exact.norm() < 3 * tolerance + 1e-14  # in the mean square over independent entries: here a sample
    work = sum((len(p.u) + len(p.v)) * p.u.shape[1] if p.u is not None and p.v is not None else
               (p.out.stop - p.out.start) * (p.wide.stop - p.wide.start) for p in blocks)  # fmt: skip
    assert work < {1e-3: 0.3, 1e-6: 0.6, 1e-12: 1.01}[tolerance] * weights.numel()


def test_a_plan_takes_inputs_that_are_never_there():
    weights, d, a, c, b = pairs(20, 12, 40, 90)
    a[:, 60:], d[:, :3], b[:, :5] = 0, 0, 0
    sizes = [(p.square().mean(0).sqrt(), q.square().mean(0).sqrt()) for p, q in ((d, a), (c, b))]
    scores = torch.zeros(20, 12, dtype=torch.float64)
    Pairing(weights, c, b, plan(weights, sizes[0], sizes[1], 1e-10)).add(d, a, scores)
    exact = torch.einsum("io,ik,ok,to,tk->it", d, a, weights, c, b)
    assert (scores - exact).norm() / exact.norm() < 1e-9


@each_solver
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_a_measurement_of_the_whole_set_is_the_mean(name, solver):
    fitted = problem(name)
    near(run(replace(fitted, measurement=MeanLoss()), solver), run(fitted, solver).mean(1, keepdim=True))


@pytest.mark.parametrize("params", ["last_layer", "*.weight", "*.bias", "1.weight"])
def test_some_parameters_only(params):
    """A selection's blocks are the whole's where a layer is selected whole; weights alone have no ones among their inputs."""
    fitted = problem("mlp").select(params)
    scores = InverseCurvature(Ekfac(), "ggn", 0.1, params).estimate(problem("mlp"), None, 0).influence
    curvature = Curvature(fitted, "ggn", 0.1)
    x = Ekfac().solve(curvature, fitted.test_gradients().T, 0).x
    near(scores, fitted.loss_gradients(fitted.train) @ x / fitted.n_train)
    if params == "last_layer":
        reference = references(problem("mlp"), "ggn")[-1]
        matrix = dense_layer(reference, Ekfac()) + 0.12 * torch.eye(15, dtype=torch.float64)
        near(
            fitted.matrix_layers[0].gather(x.T).flatten(1),
            torch.linalg.solve(matrix, fitted.matrix_layers[0].gather(fitted.test_gradients()).flatten(1).T).T,
        )


def test_margins_are_measured_too():
    fitted = replace(problem("mlp"), measurement=Margin())
    x = Ekfac().solve(Curvature(fitted, "ggn", "auto"), fitted.test_gradients().T, 0).x
    near(run(fitted, Ekfac()), fitted.loss_gradients(fitted.train) @ x / fitted.n_train)


# ------------------------------------------------------------------------------------------------------------------ refusals


class Welsch(Objective):
    """A bounded loss, concave far from the target."""

    def loss(self, outputs, targets):
        return 1 - torch.exp(-((outputs.squeeze(-1) - targets) ** 2))


@each_solver
def test_what_has_no_factored_curvature_is_refused(solver):
    fitted = problem("mlp")
    with pytest.raises(InfluxError, match=r"inverts ggn or fisher, not hessian: set method\.curvature=ggn"):
        InverseCurvature(solver, "hessian").plan(fitted, None)
    with pytest.raises(InfluxError, match=r"ggn or fisher, not hessian"):
        solver.solve(Curvature(fitted, "hessian", 0.1), fitted.test_gradients().T, 0)
    far = replace(problem("ridge"), objective=Welsch())
    far = replace(far, train=replace(far.train, targets=far.train.targets + 5))
    with pytest.raises(InfluxError, match=r"Welsch is not convex .* set method\.curvature=fisher"):
        run(far, solver)
    with pytest.raises(InfluxError, match=r"method\.solver\.labels=true is not possible: .*empirical, sampled"):
        type(solver)("true")


@each_solver
def test_other_layers_are_refused_before_training(solver):
    made = experiment("conv", model=BatchNormNet())
    with pytest.raises(InfluxError, match=r"linear and convolution layers, .* method\.params='<pattern of names>', or use method=cg"):
        InverseCurvature(solver).plan(made.untrained(0), None)


def test_a_singular_factored_curvature_is_refused():
    """No damping and no weight decay: more parameters than rows leave eigenvalues of 0."""
    bare = replace(problem("mlp"), weight_decay=0.0, train=problem("mlp").train.take(slice(0, 3)))
    with pytest.raises(NumericalError, match=r"the factored curvature of layer .* is singular .*: set method\.damping=auto"):
        InverseCurvature(Ekfac(), "ggn", 0.0).estimate(bare, None, 0)


def test_a_direction_of_one_row_counts(monkeypatch):
    """A feature that a single training row has is no rounding error of the sum over entries: planned = entry by entry."""
    fitted = problem("mlp")
    inputs = torch.randn(900, *fitted.train.inputs.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs[:, 0] = 0.0
    inputs[17, 0] = 30.0
    targets = fitted.train.targets[torch.arange(900) % fitted.n_train]
    rare = replace(fitted, train=Examples(inputs, targets), weight_decay=1e-5)
    made = []
    for worth in (0.0, 1e30):
        monkeypatch.setattr(factored, "WORTH", worth)
        monkeypatch.setattr(factored, "VALUES", 0)
        made.append(InverseCurvature(Ekfac(), "ggn", 0.0).estimate(rare, None, 0).influence)
    # The plan's own tolerance is 8 eps in the mean square, 30 here and there for a single row.
    assert_close(made[0], made[1], rtol=1e-9, atol=1e-12 * made[1].abs().max().item())
