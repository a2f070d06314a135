"""Curvature of the training objective as a matrix that is only multiplied with: Hessian, generalised Gauss-Newton (GGN) or Fisher, damped.

With `f_i` the outputs and `ℓ_i` the loss of example i (n of them), λ the weight decay and δ the damping:

* Hessian  `A = (1/n) Σ_i ∇²ℓ_i + (λ + δ) I`, of the objective itself;
* GGN      `A = (1/n) Σ_i J_iᵀ (∇²_f ℓ_i) J_i + (λ + δ) I`, positive semi-definite before the shift for a loss convex in its outputs;
* Fisher   `A = (1/n) Σ_i ∇ℓ_i ∇ℓ_iᵀ + (λ + δ) I`, the empirical one, with the labels of the data. (With labels drawn from the model it is
  the GGN in expectation, for cross-entropy and squared error; Kunstner et al. 2019 on the difference.)

The weight decay belongs to the objective, so it is always inside (Koh & Liang 2017; Bae et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from influx.layered import chain, fits, of_outputs
from influx.problem import Examples, Problem
from influx.seeding import torch_generator
from influx.stacking import blocks

Product = Callable[[Tensor], Tensor]  # [p, m] -> [p, m]


AUTO_SHARE = 0.1  # of the mean eigenvalue: the damping "auto" (Grosse et al. 2023, section 5)
PROBES = 64  # random vectors behind a mean eigenvalue
PRODUCT_BYTES = 2**25  # of a product's temporaries: twice as many leave the cache
GRAPH = 8  # times a row's outputs that a kept graph of it holds
FEW_ROWS = 8  # a block that would hold fewer, of documents say, is out of the cache anyway: blocks of `WIDE_BYTES` then
WIDE_BYTES = 2**29
WIDE = 256  # outputs from which their curvature is multiplied with rather than formed
HEAVY = 2e7  # operations of a forward pass from which a kept graph beats vectorised products
CLOSED = 1024  # parameters of an output layer up to which its matrix is formed rather than multiplied with
HELD = 0.25  # share of the memory that a Fisher matrix's gradients may fill between products


@dataclass(frozen=True)
class Curvature:
    """`A = C + (λ + δ) I` over the problem's selected parameters.

    Args:
        problem: the fitted problem; its parameters are where the curvature is taken.
        kind: "hessian", "ggn" or "fisher".
        damping: δ ≥ 0, in the curvature's unit (loss per squared parameter), or "auto": 0.1 x the mean eigenvalue of C.
    """

    problem: Problem
    kind: str
    damping: float | str
    kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # what a solver keeps between its solves

    @property
    def size(self) -> int:
        return self.problem.n_params

    @cached_property
    def delta(self) -> float:
        """δ as a number."""
        return AUTO_SHARE * abs(self.mean_eigenvalue) if self.damping == "auto" else float(self.damping)

    @cached_property
    def mean_eigenvalue(self) -> float:
        """tr(C)/P, by random signs (Hutchinson 1990): relative error about √(2/(64 x effective rank)). Cost: 64 products."""
        signs = torch.randint(2, (self.size, PROBES), generator=torch_generator(0, "trace")).to(self.problem.theta) * 2 - 1
        return ((signs * self._data(signs)).sum() / (PROBES * self.size)).item()

    @property
    def definite(self) -> str:
        """The setting for a matrix without negative eigenvalues; the GGN has some when the loss is not convex in the model's outputs."""
        return "method.curvature=ggn" if self.kind == "hessian" else "method.curvature=fisher"

    @property
    def shift(self) -> float:
        """λ + δ, what is added to the diagonal of the data part."""
        return self.problem.weight_decay + self.delta

    def matmat(self, vectors: Float[Tensor, "p m"], rows: Tensor | None = None) -> Float[Tensor, "p m"]:
        """`A V`, all vectors at once; over a batch of training `rows` only, the data part is that batch's mean.

        Cost: about three (GGN) or four (Hessian) forward-backward passes over the rows for each vector.
        """
        return self.shift * vectors + self._data(vectors, rows)

    def _data(self, vectors: Float[Tensor, "p m"], rows: Tensor | None = None) -> Float[Tensor, "p m"]:
        """C V."""
        examples = self.problem.train if rows is None else self.problem.train.take(rows)
        products = self._full if rows is None else self._linearise(examples)
        result = torch.zeros_like(vectors)
        for size, product in products:
            for columns in blocks(vectors.shape[1], 12 * size * self.problem.bytes_per_row, PRODUCT_BYTES):
                result[:, columns] += product(vectors[:, columns]) / len(examples)
        return result

    @cached_property
    def _full(self) -> list[tuple[int, Product]]:
        closed = self._of_output_layer() if self.size <= CLOSED and self.kind != "fisher" else None
        if closed is None:
            return self._linearise(self.problem.train)
        return [(self.problem.n_train, lambda vectors: self.problem.n_train * (closed @ vectors))]

    def _linearise(self, examples: Examples) -> list[tuple[int, Product]]:
        """Blocks of rows, each with its size and V ↦ (Σ_rows C_i) V."""
        if self.kind == "fisher":
            return self._gradients(examples)
        if self.problem.words is not None:
            words, hessian = self.problem.words, self.kind == "hessian"
            return [(0, lambda vectors: words.curvature(examples.inputs, examples.targets, vectors, hessian))]  # it cuts rows itself
        each = 12 * self.problem.bytes_per_row
        wide = FEW_ROWS * each > PRODUCT_BYTES
        cut = blocks(len(examples), each, WIDE_BYTES if wide else PRODUCT_BYTES)
        make = self._layered if fits(self.problem.module) else self._traced
        if make == self._traced and (wide or self._heavy(cut[0].stop)):
            make = self._graphed if len(examples) * GRAPH * self.problem.bytes_per_row <= HELD * self.problem.memory else self._graphed_anew
        return [(rows.stop - rows.start, make(examples.take(rows))) for rows in cut]

    def dense(self) -> Float[Tensor, "p p"]:
        """The whole matrix, symmetrised. Cost: P products; n P²/2 multiply-adds when only a linear output layer moves.

        Memory: P² numbers.
        """
        matrix = None if self.kind == "fisher" else self._of_output_layer()
        if matrix is None:
            matrix = self._data(torch.eye(self.size, dtype=self.problem.theta.dtype, device=self.problem.theta.device).T)
        matrix.diagonal().add_(self.shift)
        return 0.5 * (matrix + matrix.T)

    def _of_output_layer(self) -> Float[Tensor, "p p"] | None:
        """C of a linear output layer alone, `(1/n) Σ_i (∂²ℓ_i/∂f²) ⊗ h_i h_iᵀ`: outputs are linear in θ, so Hessian and GGN are one.

        None for any other selection.
        """
        problem = self.problem
        if problem.layers is None or len(problem.layers) != 1 or problem.layers[0].kind != "linear":
            return None
        layer = problem.layers[0]
        out, wide = layer.shape
        folded = torch.zeros(out, wide, out, wide, dtype=problem.theta.dtype, device=problem.theta.device)
        for rows, kept in problem.passes(problem.train, out * out * wide * problem.theta.element_size()):
            if len(kept.results[0]) != 1 or kept.results[0][0] is not kept.outputs:
                return None  # used twice, or something stands behind it
            h = kept.inputs[0][:, 0]
            curved = of_outputs(kept.outputs, problem.train.targets[rows], problem.objective)[1]
            for c in range(out):  # the row of blocks from the diagonal on; the others are their mirror
                weighted = curved[:, c, c:].unsqueeze(2) * h.unsqueeze(1)  # [rows, out - c, in]
                folded[c, :, c:] += (h.T @ weighted.flatten(1)).view(wide, out - c, wide)
        for c in range(out):
            folded[c + 1 :, :, c] = folded[c, :, c + 1 :].permute(1, 2, 0)
        place = layer.gather(torch.arange(self.size, device=problem.theta.device).unsqueeze(0)).flatten()  # θ's order, bias folded in
        matrix = folded.view(self.size, self.size) / problem.n_train
        return matrix[place.argsort()][:, place.argsort()]

    def _gradients(self, examples: Examples) -> list[tuple[int, Product]]:
        """V ↦ Gᵀ(G V) with the gradients G of a block, kept when all of them fit, else made anew for each product."""
        part = replace(self.problem, train=examples)
        keep = len(examples) * self.problem.theta.nbytes <= HELD * self.problem.memory
        kept = [made for _, made in part.train_gradients()] if keep else None

        def product(vectors: Float[Tensor, "p m"]) -> Float[Tensor, "p m"]:
            total = torch.zeros_like(vectors)
            for gradients in kept if kept is not None else (made for _, made in part.train_gradients()):
                total += gradients.T @ (gradients @ vectors)
            return total

        return [(len(examples), product)]

    def _layered(self, examples: Examples) -> Product:
        """For plain chains of layers: hand-written, one matrix product a layer for all vectors."""
        problem, hessian = self.problem, self.kind == "hessian"
        linearised = chain(problem.module, problem.params, examples.inputs, examples.targets, problem.objective)
        shapes = {name: problem.params[name].shape for name in problem.selected}

        def product(vectors: Float[Tensor, "p m"]) -> Float[Tensor, "p m"]:
            parts = vectors.T.split([shape.numel() for shape in shapes.values()], dim=1)
            named = {name: part.reshape(-1, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
            curved = linearised.product(named, hessian)
            return torch.cat([curved[name].flatten(1) for name in shapes], dim=1).T

        return product

    def _heavy(self, rows: int) -> bool:
        """Whether one vector's product keeps a CPU busy for long enough that calls do not count."""
        return not self.problem.theta.is_cuda and rows * self.problem.flops_per_row >= HEAVY

    def _graphed_anew(self, examples: Examples) -> Product:
        """As `_graphed`, with the graph in memory during a product alone."""
        return lambda vectors: self._graphed(examples)(vectors)

    @torch.enable_grad()
    def _graphed(self, examples: Examples) -> Product:
        """For large modules on a CPU: derivatives of a graph that is kept, a vector at a time; half the time of `_traced`."""
        problem, theta = self.problem, self.problem.theta.detach().requires_grad_(True)
        outputs = problem.outputs(theta, examples.inputs)
        if self.kind == "hessian":
            gradient = torch.autograd.grad(problem.objective.loss(outputs, examples.targets).sum(), theta, create_graph=True)[0]
            return lambda vectors: torch.stack([_slope(gradient, v, theta) for v in vectors.T], dim=1)
        curved = self._of_outputs(outputs, examples)
        seed = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad((outputs * seed).sum(), theta, create_graph=True)[0]  # Jᵀ seed, linear in the seed

        def gauss_newton(v: Tensor) -> Tensor:
            moved = _slope(pulled, v, seed)  # J v
            return _slope(outputs, curved(moved), theta)

        return lambda vectors: torch.stack([gauss_newton(v) for v in vectors.T], dim=1)

    def _of_outputs(self, outputs: Float[Tensor, "rows out"], examples: Examples) -> Callable[[Tensor], Tensor]:
        """ḟ ↦ (∂²ℓ/∂f²) ḟ of each row: with the matrices [rows, out, out], or for many outputs by differentiating the slope."""
        problem = self.problem
        if outputs.shape[1] <= WIDE:
            curved = of_outputs(outputs, examples.targets, problem.objective)[1]
            return lambda moved: torch.bmm(curved, moved.unsqueeze(2)).squeeze(2)
        leaf = outputs.detach().requires_grad_(True)
        slope = torch.autograd.grad(problem.objective.loss(leaf, examples.targets).sum(), leaf, create_graph=True)[0]
        return lambda moved: _slope(slope, moved, leaf)

    def _traced(self, examples: Examples) -> Product:
        """For any module: forward-over-reverse products through torch.func, vectorised over the vectors."""
        problem, theta = self.problem, self.problem.theta

        def total(t: Tensor) -> Tensor:
            return problem.losses(t, examples).sum()

        def forward(t: Tensor) -> Tensor:
            return problem.outputs(t, examples.inputs)

        def loss_of_outputs(outputs: Tensor) -> Tensor:
            return problem.objective.loss(outputs, examples.targets).sum()

        if self.kind == "hessian":
            return vmap(lambda v: jvp(grad(total), (theta,), (v,))[1], in_dims=1, out_dims=1)

        pull_back = vjp(forward, theta)[1]

        def gauss_newton(v: Tensor) -> Tensor:
            outputs, tangent = jvp(forward, (theta,), (v,))[:2]
            curved = jvp(grad(loss_of_outputs), (outputs,), (tangent,))[1]
            return pull_back(curved)[0]

        return vmap(gauss_newton, in_dims=1, out_dims=1)


@torch.enable_grad()
def _slope(value: Tensor, along: Tensor, leaf: Tensor) -> Tensor:
    """∂⟨value, along⟩/∂leaf, the graph kept; zeros when it does not depend on it."""
    found = torch.autograd.grad((value * along).sum(), leaf, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(leaf) if found is None else found
