"""Layer-wise Kronecker-factored curvature in its eigenbasis (Martens & Grosse 2015; George et al. 2018; Grosse et al. 2023, section 2.2).

For a layer with inputs h (a one for the bias at their end) and output gradients δ, an example's gradient is the matrix `G = Σ_p δ_p h_pᵀ`
[out, in], the sum over the places p at which the layer's weight is used: one for a linear layer, the pixels of its output for a
convolution. Curvature is the second moment of pseudo-gradients, approximated by a Kronecker product:

    A = (1/n) Σ_i Σ_p h h ᵀ         [in, in]
    S = (1/n) Σ_i Σ_c (1/places) Σ_p δ δᵀ     [out, out]
    C ≈ S ⊗ A = (Q_S ⊗ Q_A) diag(Λ) (Q_S ⊗ Q_A)ᵀ,   Λ = λ_S λ_Aᵀ                     (K-FAC)
    Λ = (1/n) Σ_i Σ_c (Q_Sᵀ G_ic Q_A)²  in the same eigenvectors                       (EK-FAC: the best diagonal there)

With more than one place this is the convolution form of Grosse & Martens 2016 (section 3: places uncorrelated and alike): the sum over
places goes to A, their mean to S.

Pseudo-gradients of example i, c = 1, 2, ..., are what comes back from these gradients of its outputs f:
* "ggn"     each column of a square root R of ∂²ℓ_i/∂f² (R Rᵀ): the exact Gauss-Newton matrix, one backward pass an output;
* "fisher"  ∂ℓ_i/∂f, with the label of the data ("empirical") or one drawn from the model's own prediction ("sampled").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from influx.errors import InfluxError
from influx.gradients import Layer, Pass, slope
from influx.layered import of_outputs
from influx.objectives import CrossEntropy, Objective, SquaredError, Supervised
from influx.objectives.base import Likely
from influx.problem import Problem
from influx.seeding import torch_generator

HELD = 0.5  # share of the memory that signals may fill between the two passes of EK-FAC
LOOKED_AT = 8  # training rows that a plan looks at
CONVEX = 1e-3  # relative: how far R Rᵀ may be from ∂²ℓ/∂f² in float32


@dataclass(frozen=True)
class Signals:
    """What goes through one layer for a block of rows: its inputs, and the output gradients of every pseudo-gradient."""

    inputs: Float[Tensor, "rows places in"]
    deltas: Float[Tensor, "rows copies out places"]

    @property
    def nbytes(self) -> int:
        return self.inputs.nbytes + self.deltas.nbytes


@dataclass(frozen=True)
class Eigenbasis:
    """One layer's `C ≈ (Q_S ⊗ Q_A) diag(Λ) (Q_S ⊗ Q_A)ᵀ`."""

    layer: Layer
    inputs: Float[Tensor, "in in"]  # Q_A
    outputs: Float[Tensor, "out out"]  # Q_S
    values: Float[Tensor, "out in"]  # Λ

    def rotate(self, matrices: Float[Tensor, "rows out in"]) -> Float[Tensor, "rows out in"]:
        """Q_Sᵀ G Q_A."""
        return self.outputs.T @ (matrices @ self.inputs)

    def rotate_back(self, matrices: Float[Tensor, "rows out in"]) -> Float[Tensor, "rows out in"]:
        """Q_S G Q_Aᵀ."""
        return self.outputs @ (matrices @ self.inputs.T)

    def scale(self, matrices: Float[Tensor, "rows out in"], factors: Float[Tensor, "out in"]) -> Float[Tensor, "rows out in"]:
        """`(Q_S ⊗ Q_A) diag(factors) (Q_S ⊗ Q_A)ᵀ` times each matrix."""
        return self.rotate_back(self.rotate(matrices) * factors)


def eigenbases(problems: Sequence[Problem], kind: str, *, labels: str, corrected: bool, seed: int) -> list[Eigenbasis]:
    """The factored curvature of every layer, its mean over `problems` (one, or a model at several checkpoints); `corrected` is EK-FAC.

    Cost: one forward pass a training example and a backward pass for each pseudo-gradient (twice, where they do not fit in half of the
    memory), in² + out² multiply-adds an example, and the eigenvectors. Memory: a few times in² + out² numbers a layer.
    """
    total = sum(problem.n_train for problem in problems)
    held: list[list[Signals]] = []
    room, done, whole = HELD * problems[0].memory, 0, True
    sums: list[list[Tensor]] = []
    for block in _everywhere(problems, kind, labels, seed, 0):
        moments = [_moments(part) for part in block]
        sums = [[old + new for old, new in zip(*pair, strict=True)] for pair in zip(sums, moments, strict=True)] if sums else moments
        room -= sum(part.nbytes for part in block)
        whole = whole and room >= 0
        if corrected and whole:
            held.append(block)
            done += len(block[0].inputs)
    mean = [(a / total, s / total) for a, s in sums]
    bases = [_eigenbasis(layer, a, s, problems[0].theta) for layer, (a, s) in zip(problems[0].matrix_layers, mean, strict=True)]
    if not corrected:
        return bases
    squares = [torch.zeros_like(basis.values) for basis in bases]
    for block in chain(held, _everywhere(problems, kind, labels, seed, done)):
        for basis, part, square in zip(bases, block, squares, strict=True):
            square += _squares(basis, part)
    return [replace(basis, values=square / total) for basis, square in zip(bases, squares, strict=True)]


def _everywhere(problems: Sequence[Problem], kind: str, labels: str, seed: int, done: int) -> Iterator[list[Signals]]:
    """The signals of all problems, one after the other, without their first `done` rows."""
    for problem in problems:
        if done < problem.n_train:
            yield from signals(problem, kind, labels=labels, seed=seed, first=done)
        done = max(0, done - problem.n_train)


def signals(problem: Problem, kind: str, *, labels: str, seed: int, first: int = 0) -> Iterator[list[Signals]]:
    """Every layer's inputs and output gradients for the pseudo-gradients of all training examples from `first` on, in blocks of rows."""
    width = problem.outputs(problem.theta, problem.train.inputs[:1]).shape[1]
    copies = width if kind == "ggn" else 1
    each = copies * problem.bytes_per_row + 4 * width**2 * problem.theta.element_size()
    uniform = uniforms(problem, width, seed) if kind == "fisher" and labels == "sampled" else None
    train = problem.train.take(slice(first, None))
    for rows, kept in problem.passes(train, each):
        targets = train.targets[rows]
        if kind == "ggn":
            seeds = _roots(problem, kept, targets)
        elif kind == "fisher":
            chosen = targets if uniform is None else drawn(problem.objective, kept.outputs.detach(), targets, uniform[first:][rows])
            seeds = [slope(problem.objective.loss, kept.outputs, chosen)]
        else:
            raise InfluxError(f"a Kronecker-factored curvature is ggn or fisher, not {kind}: set method.curvature=ggn.")
        deltas = [kept.deltas(one, keep=True) for one in seeds]  # [copies][layers]
        stacks = [torch.stack([part.mT for part in parts], dim=1) for parts in zip(*deltas, strict=True)]
        yield [Signals(h, stacked) for h, stacked in zip(kept.inputs, stacks, strict=True)]


def uniforms(problem: Problem, width: int, seed: int) -> Float[Tensor, "n numbers"]:
    """What a target of each training example is drawn with: one number in [0, 1), or `width` of them where targets may be vectors.

    Raises:
        InfluxError: the objective has no distribution to draw from.
    """
    check_draws(problem)
    numbers = width if isinstance(problem.objective, Likely) else 1
    return torch.rand(problem.n_train, numbers, generator=torch_generator(seed, "labels"), dtype=torch.float64)


def check_draws(problem: Problem) -> None:
    """Raise `InfluxError` when targets cannot be drawn from what the model says."""
    if not isinstance(problem.objective, Likely | CrossEntropy | SquaredError | Supervised):
        raise InfluxError(
            f"{type(problem.objective).__name__} gives no distribution that targets could be drawn from: use the data's own "
            "(method.solver.labels=empirical; method=kronfluence: method.empirical=true)."
        )


def drawn(
    objective: Objective,
    outputs: Float[Tensor, "rows out"],
    targets: Shaped[Tensor, " rows *target"],
    uniform: Float[Tensor, "rows numbers"],
) -> Shaped[Tensor, " rows *target"]:
    """Targets from the model's own prediction: a class from its softmax, a number from a unit Gaussian around it; those of an objective
    without labels as it says itself."""
    uniform = uniform.to(outputs.device)
    if isinstance(objective, Likely):
        return objective.draw(outputs, uniform)
    if targets.is_floating_point():
        return outputs.squeeze(-1) + torch.special.ndtri(uniform[:, 0].clamp_min(torch.finfo(uniform.dtype).tiny)).to(outputs)
    below = outputs.double().softmax(-1).cumsum(-1)[:, :-1] < uniform
    return below.sum(1)


def _roots(problem: Problem, kept: Pass, targets: Shaped[Tensor, " rows"]) -> list[Float[Tensor, "rows out"]]:
    parts = _root_of_outputs(problem, kept.outputs, targets).unbind(2)
    return [part for part in parts if bool(part.any())] or [parts[0]]


def _root_of_outputs(
    problem: Problem, outputs: Float[Tensor, "rows out"], targets: Shaped[Tensor, " rows *target"]
) -> Float[Tensor, "rows out out"]:
    """
    Raises:
        InfluxError: there is none.
    """
    curved = of_outputs(outputs, targets, problem.objective)[1]
    columns = root(curved)
    if bool((columns @ columns.mT - curved).norm() > CONVEX * curved.norm()):
        raise InfluxError(
            f"{type(problem.objective).__name__} is not convex in the model's outputs, so its Gauss-Newton matrix has no square root: "
            "set method.curvature=fisher."
        )
    return columns


def convex(problem: Problem) -> bool:
    """Whether the loss is convex in the outputs, as far as the first training rows show."""
    try:
        check_convex(problem)
    except InfluxError:
        return False
    return True


def check_convex(problem: Problem) -> None:
    """Raise `InfluxError` when the first training rows show that the loss is not convex in the outputs; cheap, and before training."""
    few = problem.train.take(slice(0, LOOKED_AT))
    with torch.no_grad():
        outputs = problem.outputs(problem.theta, few.inputs)
    _root_of_outputs(problem, outputs, few.targets)


def root(matrices: Float[Tensor, "rows size size"]) -> Float[Tensor, "rows size size"]:
    """R with R Rᵀ = each positive semi-definite matrix, by Cholesky; pivots at rounding level give a column of zeros.

    Backward stable for semi-definite matrices (Higham 2002, section 10.3.2): for softmax the last pivot is zero but for rounding. Cost:
    size³/3 multiply-adds a row, all rows side by side.
    """
    rest = matrices.clone()
    size = rest.shape[-1]
    least = 4 * size * torch.finfo(rest.dtype).eps * rest.diagonal(dim1=1, dim2=2).amax(1)
    made = torch.zeros_like(rest)
    for c in range(size):
        pivot = rest[:, c, c]
        column = rest[:, c:, c] / torch.where(pivot > least, pivot, torch.inf).sqrt().unsqueeze(1)
        made[:, c:, c] = column
        rest[:, c:, c:] -= column.unsqueeze(2) * column.unsqueeze(1)
    return made


def _moments(part: Signals) -> list[Tensor]:
    """Σ h hᵀ and Σ δ δᵀ/places of a block, added up in float64, and where rows have one place made in it: eigenvectors of small
    eigenvalues depend on the last digits of float32."""
    places = part.inputs.shape[1]
    h, delta = part.inputs.flatten(0, 1), part.deltas.mT.flatten(0, 2)
    if places <= 1:
        h, delta = h.double(), delta.double()
    return [(h.T @ h).double(), (delta.T @ delta).double() / max(1, places)]


def _eigenbasis(layer: Layer, a: Float[Tensor, "in in"], s: Float[Tensor, "out out"], like: Tensor) -> Eigenbasis:
    """K-FAC's, in `like`'s type; eigenvalues that rounding made negative are 0."""
    (of_inputs, q_a), (of_outputs, q_s) = torch.linalg.eigh(a), torch.linalg.eigh(s)
    values = of_outputs.clamp_min(0).unsqueeze(1) * of_inputs.clamp_min(0)
    return Eigenbasis(layer, q_a.to(like), q_s.to(like), values.to(like))


def _squares(basis: Eigenbasis, part: Signals) -> Float[Tensor, "out in"]:
    """Σ_i Σ_c (Q_Sᵀ G_ic Q_A)² of a block; one product when gradients have rank one."""
    h = part.inputs @ basis.inputs
    if part.inputs.shape[1] == 1:
        return (part.deltas.squeeze(3) @ basis.outputs).square().sum(1).T @ h.squeeze(1).square()
    gradients = part.deltas.flatten(1, 2) @ h  # [rows, copies out, in]: all of a row's in one product
    return (basis.outputs.T @ gradients.unflatten(1, part.deltas.shape[1:3])).square_().sum((0, 1))
