"""The influence estimate of the fragility studies as their released code computes it, each departure from the theory a switch.

The theory (`influx.estimators.inverse_curvature`) is `influence[i, t] = (1/n) ∇m_tᵀ A⁻¹ ∇ℓ_i` with `A = curvature + (λ + δ) I`. The code
that the first author of Epifano et al. 2023, "Revisiting the fragility of influence functions" (Neural Networks 162), released in 2021,
before the paper, and which follows Basu et al. 2021, "Influence functions in deep learning are fragile" (ICLR), computes

    score[i, t] = ± ∇m_tᵀ C⁻¹ ∇ℓ_i,    C = (1/n) Σ_i ∇²ℓ_i over the output layer's weights, in float32, nothing added to it.

For softmax outputs C has a zero eigenvalue for every feature, as adding one vector to the weights of all classes changes no probability:
its inverse is then made of rounding. With `precision=float64 weight_decay=inside bias=moving divisor=n` the score is method=exact with
curvature=hessian and params=last_layer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from influx import rules
from influx.cost import Cost
from influx.curvature import Curvature
from influx.errors import InfluxError, NumericalError, warn_accuracy
from influx.estimators.base import Estimate, Estimator
from influx.estimators.inverse_curvature import account
from influx.models.base import last_layer
from influx.problem import GIBIBYTE, Examples, Problem, choose
from influx.progress import progress
from influx.record import Record
from influx.seeding import isolated, torch_generator
from influx.solvers.base import Solution, products, relative_residual

DROPOUT = nn.modules.dropout._DropoutNd
RESIDUAL = 1e-2  # relative; above it a solve is reported as not converged
DIRECT = ("dense", "eigen", "solve")  # what factorises the whole matrix
COPIES = 5  # P-vectors that a solve holds for each right-hand side


@dataclass(frozen=True)
class Solved:
    """Answers to all right-hand sides, and what there is to say of the matrix."""

    solution: Solution
    facts: dict[str, float]


@dataclass(frozen=True)
class AsPublished(Estimator):
    """score[i, t] of the released code; its scale is the measurement's unit only with divisor=n.

    Args:
        precision: "float32" or "float64", of matrix, inverse and gradients, whatever the run's number type.
        params: "last_layer", "all", or a pattern of names: the parameters in C.
        bias: of the output layer: "fixed" (not in C), "moving" (in C), or "dropped" (taken out of the logits within the estimate).
        curvature: "hessian", "ggn", or "fisher".
        weight_decay: "left_out" of C, or "inside" it as λI.
        damping: δ ≥ 0, added to C's diagonal.
        inverse: "dense" (C inverted, as released), "eigen" (inverted by way of its eigenvalues), "solve" (its equations solved), "lissa"
            (below), or "lissa_summed" (the sum of its iterates h_1 ... h_T, not the last). The first three are the same but for
            rounding, which is all that there is to an inverse along C's zero eigenvalues.
        depth: T, most steps of lissa.
        scale: σ of lissa.
        shrink: d of lissa, `h_0 = v; h_t = v + (1 − d) h_{t−1} − C h_{t−1}/σ`, answer h_T/σ: its fixed point is (C + dσ I)⁻¹ v, so that d
            acts as a damping of dσ.
        tolerance: lissa stops when the norm of h changes by less.
        dropout: "active" (the module's dropout layers draw during the estimate) or "inactive".
        index: "aligned", or "shuffled": the score of training example i is that of another, as when a shuffled pass is read in order.
        sign: "plus", or "minus" as in one of the released scripts.
        divisor: 1 as released, or "n".

    1. The released code differentiates the whole network; here the features are computed once, and the layer is a problem of its own.
    2. Dropout draws one mask for each example in C, one in its gradient and one for each test example; the released lissa draws anew at
       every step.
    3. The released lissa for convolutional nets works on minibatches; this one always takes all rows.
    4. C is formed from the outputs' curvature and made symmetric, and the loss is written through the label's log-odds. Both round
       differently from the released autograd code, so that where C is singular single scores are not the released ones.

    Cost: a forward pass an example; dense: n P² + P³ for P parameters, and as much again for the eigenvalues that are reported; lissa: up
    to `depth` products with C. Memory: 5 P² numbers (dense), the features, and 5 P-vectors a test example.
    """

    precision: str = "float32"
    params: str = "last_layer"
    bias: str = "fixed"
    curvature: str = "hessian"
    weight_decay: str = "left_out"
    damping: float | str = 0.0
    inverse: str = "dense"
    depth: int = 10000
    scale: float = 10.0
    shrink: float = 0.01
    tolerance: float = 1e-5
    dropout: str = "active"
    index: str = "aligned"
    sign: str = "plus"
    divisor: int | str = 1

    def __post_init__(self) -> None:
        rules.check_word("method.weight_decay", self.weight_decay, "left_out", "inside")
        rules.check_fields("method", self)

    @property
    def calibrated(self) -> bool:  # type: ignore[override]  # a matter of the switches, elsewhere of the class
        return self.divisor == "n" and self.sign == "plus" and self.inverse != "lissa_summed"

    def plan(self, problem: Problem, record: Record) -> Cost:
        """
        Raises:
            InfluxError: the output layer is not linear, its matrix does not fit into memory, or dropout is to draw in lower layers that C
                holds.
        """
        if self.params == "last_layer":
            problem.check_output_layer()
        elif self._draws(problem.module):
            raise InfluxError("method.dropout=active works with method.params=last_layer only: set method.dropout=inactive.")
        chosen = replace(problem, selected=self._names(problem.module))
        size, n, m = chosen.n_params, problem.n_train, problem.n_test
        width = torch.finfo(getattr(torch, self.precision)).bits // 8
        kept = problem.params[last_layer(problem.module)[0]].shape[-1] if self.params == "last_layer" else problem.train.inputs[0].numel()
        held = width * (COPIES * m * size + (n + m) * kept)
        passes = Cost(gradients=float(n + m), flops=2.0 * n * m * size, nbytes=held)
        if self.inverse not in DIRECT:
            return passes + Cost(flops=products(chosen, self.depth * m))
        needed = (3 * width + 16) * size**2  # matrix, inverse and one more; two in float64 for the eigenvalues
        if needed > problem.memory:
            raise InfluxError(
                f"method.inverse={self.inverse} works on a {size:,} x {size:,} matrix, which takes {needed / GIBIBYTE:.1f} GiB, and memory "
                f"allows {problem.memory / GIBIBYTE:.1f}: use method.inverse=lissa, method.params=last_layer, or raise memory."
            )
        return passes + Cost(flops=products(chosen, size) + 4.0 * size**3, nbytes=needed)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        """
        Raises:
            NumericalError: C has no inverse in this precision, lissa diverges, or scores are not finite.
        """
        curved, differentiated = self._problems(problem, seed)
        matrix = Curvature(curved, self.curvature, self.damping)
        influence = problem.empty()
        solves: list[dict[str, Any]] = []
        facts: dict[str, float] = {}
        kept: dict[str, Tensor] = {}
        for columns in curved.columns(COPIES):
            solved = self._solve(matrix, differentiated.test_gradients(columns).T, kept)
            solves += account(solved.solution)
            facts |= solved.facts
            for rows, gradients in differentiated.train_gradients():
                influence[rows, columns] = (gradients @ solved.solution.x).to(influence.dtype)
        influence *= (1.0 if self.sign == "plus" else -1.0) / (problem.n_train if self.divisor == "n" else 1)
        if not bool(torch.isfinite(influence).all()):
            raise NumericalError(_remedy("the scores are not finite"))
        if self.index == "shuffled":
            order = torch.randperm(problem.n_train, generator=torch_generator(seed, "shuffled index"))
            influence = influence[order.to(influence.device)]
        return Estimate(influence, solves, facts)

    def _draws(self, module: nn.Module) -> bool:
        return self.dropout == "active" and any(isinstance(part, DROPOUT) for part in module.modules())

    def _names(self, module: nn.Module) -> tuple[str, ...]:
        """The parameters in C, without the output layer's bias where that does not move."""
        names = choose(self.params, module)
        still = () if self.bias == "moving" else tuple(name for name in last_layer(module) if name.rpartition(".")[2] == "bias")
        return tuple(name for name in names if name not in still)

    def _problems(self, problem: Problem, seed: int) -> tuple[Problem, Problem]:
        """What C is taken of, and what is differentiated: two only where dropout draws."""
        decay = problem.weight_decay if self.weight_decay == "inside" else 0.0
        problem = replace(problem, weight_decay=decay, selected=self._names(problem.module))
        dtype = getattr(torch, self.precision)
        if self.params != "last_layer":
            whole = self._in_precision(problem, dtype)
            return whole, whole
        if not self._draws(problem.module):
            layer = self._output_layer(problem, problem.features(problem.train), problem.features(problem.test), dtype)
            return layer, layer
        module = copy.deepcopy(problem.module)
        for part in module.modules():
            if isinstance(part, DROPOUT):
                part.train()
        drawing = replace(problem, module=module)
        with isolated(seed, "dropout"):  # masks of the matrix, of the training gradients, of the test gradients
            first, second, third = (drawing.features(part) for part in (problem.train, problem.train, problem.test))
        return self._output_layer(problem, first, third, dtype), self._output_layer(problem, second, third, dtype)

    def _output_layer(
        self, problem: Problem, train: Float[Tensor, "n features"], test: Float[Tensor, "n_test features"], dtype: torch.dtype
    ) -> Problem:
        """The output layer as a problem on its features."""
        tensors = [problem.params[name].detach().to(dtype) for name in last_layer(problem.module)]  # the weight, and the bias if any
        tensors = tensors[:1] if self.bias == "dropped" else tensors
        linear = nn.Linear(train.shape[1], len(tensors[0]), bias=len(tensors) == 2, dtype=dtype, device="meta")
        names = ("0.weight", "0.bias")[: len(tensors)]
        return replace(
            problem,
            module=nn.Sequential(linear.to_empty(device=tensors[0].device)).eval(),
            params=dict(zip(names, tensors, strict=True)),
            buffers={},
            train=_cast(replace(problem.train, inputs=train), dtype),
            test=_cast(replace(problem.test, inputs=test), dtype),
            selected=names if self.bias == "moving" else names[:1],
        )

    def _in_precision(self, problem: Problem, dtype: torch.dtype) -> Problem:
        """The whole network, all of it in this precision."""
        params = {name: value.detach().to(dtype) for name, value in problem.params.items()}
        if self.bias == "dropped":
            still = [name for name in last_layer(problem.module) if name.rpartition(".")[2] == "bias"]
            params |= {name: torch.zeros_like(params[name]) for name in still}
        return replace(
            problem,
            module=copy.deepcopy(problem.module).to(dtype),
            params=params,
            buffers={name: _to(value, dtype) for name, value in problem.buffers.items()},
            train=_cast(problem.train, dtype),
            test=_cast(problem.test, dtype),
        )

    def _solve(self, matrix: Curvature, rhs: Float[Tensor, "p m"], kept: dict[str, Tensor]) -> Solved:
        if self.inverse in DIRECT:
            return _dense(matrix, rhs, kept, self.inverse)
        return self._lissa(matrix, rhs)

    def _lissa(self, matrix: Curvature, rhs: Float[Tensor, "p m"]) -> Solved:
        h, total = rhs.clone(), torch.zeros_like(rhs)
        norms, moving = h.norm(dim=0), torch.ones(rhs.shape[1], dtype=torch.bool, device=rhs.device)
        steps = torch.zeros(rhs.shape[1], dtype=torch.long, device=rhs.device)
        for _ in progress(range(self.depth), "lissa"):
            there = rhs + (1 - self.shrink) * h - matrix.matmat(h) / self.scale
            h = torch.where(moving, there, h)  # a column that has stopped stays
            total += torch.where(moving, h, 0.0)
            steps += moving
            lengths = h.norm(dim=0)
            moving &= (lengths - norms).abs() >= self.tolerance
            norms = lengths
            if not bool(moving.any()):
                break
        if not bool(torch.isfinite(norms).all()):
            raise NumericalError(f"lissa diverged with method.scale={self.scale:g}: raise method.scale above the largest eigenvalue.")
        x = (total if self.inverse == "lissa_summed" else h) / self.scale
        shift = matrix.shift + self.shrink * self.scale
        residual = relative_residual(replace(matrix, damping=matrix.delta + self.shrink * self.scale, kept={}), h / self.scale, rhs)
        return Solved(Solution(x, steps, residual, residual <= RESIDUAL, shift), {})


def _dense(matrix: Curvature, rhs: Float[Tensor, "p m"], kept: dict[str, Tensor], way: str) -> Solved:
    """By the inverse itself, or by solving; `kept` holds matrix and inverse between blocks of right-hand sides."""
    if not kept:
        formed = matrix.dense()
        kept |= {"matrix": formed, "inverse": _inverse(formed, way), "eigenvalues": torch.linalg.eigvalsh(formed.double())}
        if not bool(torch.isfinite(kept["inverse"]).all()):
            raise NumericalError(_remedy(f"the {matrix.kind} has no inverse in {str(formed.dtype).removeprefix('torch.')}"))
        _warn_of_rounding(matrix.kind, formed, kept["eigenvalues"])
    x = torch.linalg.solve(kept["matrix"], rhs) if way == "solve" else kept["inverse"] @ rhs
    eigenvalues = kept["eigenvalues"]
    lengths = rhs.norm(dim=0)
    residual = torch.where(lengths > 0, (rhs - kept["matrix"] @ x).norm(dim=0) / lengths.clamp_min(torch.finfo(x.dtype).tiny), 0.0)
    facts = {
        "smallest_eigenvalue": eigenvalues[0].item(),
        "largest_eigenvalue": eigenvalues[-1].item(),
        "condition_number": (eigenvalues.abs().max() / eigenvalues.abs().min()).item(),
    }
    steps = torch.full((rhs.shape[1],), matrix.size)
    return Solved(Solution(x, steps, residual, residual <= RESIDUAL, matrix.shift, facts["smallest_eigenvalue"]), facts)


def _inverse(formed: Float[Tensor, "p p"], way: str) -> Float[Tensor, "p p"]:
    """Not finite where there is none."""
    if way == "eigen":
        values, vectors = torch.linalg.eigh(formed)
        return (vectors / values) @ vectors.T
    inverse, failed = torch.linalg.inv_ex(formed)
    return torch.full_like(formed, torch.nan) if int(failed) else inverse


def _warn_of_rounding(kind: str, formed: Float[Tensor, "p p"], eigenvalues: Float[Tensor, " p"]) -> None:
    size = eigenvalues.abs()
    if not size.min() > len(formed) * torch.finfo(formed.dtype).eps * size.max():
        warn_accuracy(
            f"the {kind} is singular to working precision (smallest eigenvalue {eigenvalues[0].item():.1e}, largest "
            f"{eigenvalues[-1].item():.1e}) and was inverted as released: the scores are partly rounding. method.weight_decay=inside or "
            "method.damping above 0 mends it."
        )


def _remedy(what: str) -> str:
    return (
        f"{what}: set method.weight_decay=inside (with training.weight_decay above 0), method.damping above 0, or method.precision=float64."
    )


def _to(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _cast(examples: Examples, dtype: torch.dtype) -> Examples:
    inputs: Shaped[Tensor, " n *shape"] = _to(examples.inputs.detach(), dtype)
    return replace(examples, inputs=inputs, targets=_to(examples.targets, dtype))
