"""A fitted problem: model, parameters, data, training objective and measurement, as functions of a flat parameter vector.

Everything an estimator needs and nothing else: no data set, no training, no configuration. The module is only ever run through
`torch.func.functional_call`, in evaluation mode; it is never changed.

Symbols: θ [P] the selected parameters (all of them, the output layer's, or those whose names match a pattern), n = n_train,
λ = weight_decay, `J(θ) = (1/n) Σ_i ℓ_i(θ) + (λ/2)‖θ‖²`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from influx import gradients, word_products
from influx.errors import InfluxError, nearest
from influx.gradients import Layer, Pass, Rows, Value
from influx.measurements import Measurement
from influx.models.base import last_layer
from influx.objectives import Objective
from influx.stacking import blocks, bytes_per_row
from influx.word_products import WordProducts

GIBIBYTE = 2**30
FEW_VECTORS = 8  # for which forward-mode passes are cheaper than gradients of rows
AGREEMENT = 1e4  # times machine precision: rounding between two ways to the same gradient stays below, a missed use of a weight does not


@dataclass(frozen=True)
class Examples:
    """Inputs and their targets, on the device and in the type of the computation; `index` is their place in the data set's own order."""

    inputs: Shaped[Tensor, " n *shape"]
    targets: Shaped[Tensor, " n *target"]
    index: Int[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: slice | Tensor) -> Examples:
        return Examples(self.inputs[rows], self.targets[rows], None if self.index is None else self.index[rows])


@dataclass(frozen=True)
class Problem:
    """One trained model with its data; `select` narrows the parameters that count. `memory` is the most bytes that an estimator's arrays
    should hold at once, beside the influence matrix itself. `judged` are the training examples as the measurement would have them: with the
    targets that it reads, labels where it judges by labels a model that was trained without them (null: it asks questions of its own)."""

    module: nn.Module
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    train: Examples
    test: Examples
    objective: Objective
    measurement: Measurement
    weight_decay: float
    selected: tuple[str, ...] = ()
    memory: int = 2 * GIBIBYTE
    judged: Examples | None = None

    def __post_init__(self) -> None:
        if not self.selected:
            object.__setattr__(self, "selected", tuple(self.params))

    def select(self, which: str) -> Problem:
        """The parameters that may move, the others staying where training left them: "all", "last_layer", or a pattern of their names
        as in a shell (`*.weight`, `4.*`).

        Raises:
            InfluxError: no parameter has such a name.
        """
        return replace(self, selected=choose(which, self.module))

    def at(self, params: dict[str, Tensor], rows: Tensor | slice = slice(None)) -> Problem:
        """The same problem at other parameters, of a checkpoint or a step, on all training rows or on some."""
        judged = None if self.judged is None else self.judged.take(rows)
        made = replace(self, params=params, train=self.train.take(rows), judged=judged)
        known = {"layers": self.layers, "bytes_per_row": self.bytes_per_row}  # the module's alone: found once, not at every step
        if self.layers is not None:
            known["numbers_per_row"] = self.numbers_per_row
        made.__dict__.update(known)
        return made

    @property
    def n_train(self) -> int:
        return len(self.train)

    @property
    def n_test(self) -> int:
        """Columns of an influence matrix: 1 for a measurement of the whole test set."""
        return 1 if self.measurement.whole_set else len(self.test)

    @property
    def n_params(self) -> int:
        return sum(self.params[name].numel() for name in self.selected)

    @cached_property
    def theta(self) -> Float[Tensor, " p"]:
        return torch.cat([self.params[name].reshape(-1) for name in self.selected])

    def empty(self) -> Float[Tensor, "n_train n_test"]:
        """An influence matrix to be filled, in the computation's type and place."""
        return self.theta.new_empty(self.n_train, self.n_test)

    def unflatten(self, theta: Float[Tensor, " p"]) -> dict[str, Tensor]:
        """The selected parameters by name, as views of a flat vector."""
        shapes = [self.params[name].shape for name in self.selected]
        parts = theta.split([math.prod(shape) for shape in shapes])
        return {name: part.view(shape) for name, part, shape in zip(self.selected, parts, shapes, strict=True)}

    def outputs(self, theta: Float[Tensor, " p"], inputs: Float[Tensor, " batch *shape"]) -> Float[Tensor, "batch out"]:
        state = {**self.params, **self.buffers, **self.unflatten(theta)}
        return functional_call(self.module, state, (inputs,))

    def losses(self, theta: Float[Tensor, " p"], examples: Examples) -> Float[Tensor, " batch"]:
        """ℓ_i(θ), without the regulariser."""
        return self.objective.loss(self.outputs(theta, examples.inputs), examples.targets)

    def measure(self, theta: Float[Tensor, " p"], examples: Examples) -> Float[Tensor, " batch"]:
        """m_t(θ) of each test example, before any mean over the set."""
        return self.measured(self.outputs(theta, examples.inputs), examples.targets)

    def measured(self, outputs: Float[Tensor, "batch out"], targets: Shaped[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """m_t as a function of the model's outputs."""
        return self.measurement.value(outputs, targets, self.objective)

    def features(self, examples: Examples) -> Float[Tensor, "n features"]:
        """What enters the output layer: the model's representation of each example. Cost: one forward pass."""
        last = self.select("last_layer")
        layers = gradients.find_layers(self.module, last.shapes)
        if layers is None or layers[0].kind != "linear":
            raise InfluxError("this model's output layer is not linear, so it has no representation to compare: use another method.")
        weight_only = (replace(layers[0], bias=None),)
        made = []
        for rows in blocks(len(examples), 4 * self.bytes_per_row):
            kept = gradients.forward(self.module, weight_only, self.state, examples.inputs[rows])
            made.append(kept.inputs[0].flatten(1))
        return torch.cat(made)

    def check_output_layer(self) -> None:
        """
        Raises:
            InfluxError: the outputs are not a linear output layer's of `features`.
        """
        wide = self.features(self.train.take(slice(0, 1))).shape[1]
        if wide != self.params[last_layer(self.module)[0]].shape[-1]:
            raise InfluxError("this model uses its output layer twice, so that outputs are no linear map of features: use method=cg.")

    @property
    def state(self) -> dict[str, Tensor]:
        return {**self.params, **self.buffers}

    @property
    def shapes(self) -> dict[str, torch.Size]:
        return {name: self.params[name].shape for name in self.selected}

    @cached_property
    def bytes_per_row(self) -> int:
        """Bytes of all layers' outputs for one example: what a forward pass of a row keeps."""
        return bytes_per_row(self.module, self.params, self.buffers, self.train.inputs)

    @cached_property
    def flops_per_row(self) -> float:
        """Multiplications and additions of one example's forward pass through the layers that the selected parameters are in."""
        if self.layers is None:
            return 2.0 * max(self.n_params, self.bytes_per_row // self.theta.element_size())
        with torch.no_grad():
            one = gradients.forward(self.module, self.layers, self.state, self.train.inputs[:1])
        return sum(2.0 * layer.size * h.shape[1] for layer, h in zip(self.layers, one.inputs, strict=True))

    @cached_property
    def layers(self) -> tuple[Layer, ...] | None:
        """The layers that the selected parameters are in, when each parameter is used by its own layer and nowhere else (compared with
        autograd on two rows); None when gradients have to be taken of the module as a whole."""
        found = gradients.find_layers(self.module, self.shapes)
        if found is None:
            return None
        few = self.train.take(slice(0, 2))
        kept = gradients.forward(self.module, found, self.state, few.inputs)
        if not all(kept.results):
            return None  # a layer that is never called
        seed = torch.arange(1.0, 1 + kept.outputs.numel()).cos().view(kept.outputs.shape).to(kept.outputs)  # a loss's slope may be 0
        by_layer = _flat(kept.rows(seed), self.theta.new_empty(len(few), self.n_params)).sum(0)
        with torch.enable_grad():  # torch.func.grad would import torch's compiler, which takes a second
            leaf = self.theta.clone().requires_grad_(True)
            whole = torch.autograd.grad(self.outputs(leaf, few.inputs), leaf, seed)[0]
        allowed = AGREEMENT * torch.finfo(whole.dtype).eps * whole.norm()
        return found if bool((by_layer - whole).norm() <= allowed) else None

    @cached_property
    def matrix_layers(self) -> tuple[Layer, ...]:
        """The layers, each a linear one or a convolution.

        Raises:
            InfluxError: a selected parameter is in none of those.
        """
        layers = self.layers
        if layers is None or any(layer.kind == "norm" for layer in layers):
            raise InfluxError(
                f"this method works on linear and convolution layers, and {type(self.module).__name__} has parameters elsewhere (or uses "
                "one twice): leave those out with method.params='<pattern of names>', or use method=cg."
            )
        return layers

    def passes(self, examples: Examples, each: int = 0) -> Iterator[tuple[slice, Pass]]:
        """Forward passes with all that backward passes need, in blocks of rows; `each` is how many more bytes a row keeps busy."""
        layers = self.matrix_layers if self.layers is None else self.layers
        number = self.theta.element_size() * self.numbers_per_row
        for rows in blocks(len(examples), 2 * number + each):
            yield rows, gradients.forward(self.module, layers, self.state, examples.inputs[rows])

    @cached_property
    def numbers_per_row(self) -> int:
        """How many numbers a forward pass of one row keeps for its gradients."""
        layers = self.matrix_layers if self.layers is None else self.layers
        return gradients.numbers_per_row(self.module, layers, self.state, self.train.inputs)

    def train_rows(self) -> Iterator[tuple[slice, list[Rows]]]:
        """∇ℓ_i for every training example, a layer at a time and as factors where there are any, in blocks of rows."""
        yield from self._rows(self.objective.loss, self.train)

    def test_rows(self, columns: slice = slice(None)) -> list[Rows]:
        """∇m_t for the test examples in `columns` (all), or their mean when the measurement is of the whole set, a layer at a time.

        Memory: the factors for linear layers, n_test x P numbers for the others.
        """
        if not self.measurement.whole_set:
            made = [rows for _, rows in self._rows(self.measured, self.test.take(columns))]
            return [_join(parts) for parts in zip(*made, strict=True)]
        mean = self.test_gradients()
        layers = (whole_layer(self.n_params),) if self.layers is None else self.layers
        return [Rows(layer, None, None, layer.gather(mean)) for layer in layers]

    def train_gradients(self) -> Iterator[tuple[slice, Float[Tensor, "batch p"]]]:
        """∇ℓ_i for every training example, in blocks of rows. Cost: one forward and backward pass an example."""
        for rows, parts in self._rows(self.objective.loss, self.train):
            yield rows, _flat(parts, self.theta.new_empty(rows.stop - rows.start, self.n_params))

    @cached_property
    def words(self) -> WordProducts | None:
        """Products with derivatives of a model of word vectors, by hand; None for any other model."""
        return WordProducts(self.params, self.selected, self.objective) if word_products.fits(self.module) else None

    def along(self, vectors: Float[Tensor, "p m"]) -> Float[Tensor, "n_train m"]:
        """∇ℓ_iᵀ v of every training example with each of a few vectors: the derivative of the losses along v.

        A module whose layers are known has its gradients formed in blocks of rows; for any other each vector is one forward-mode pass, and
        no gradient is formed: what word vectors need, whose gradients are nearly all zeros. Cost: about two forward passes a vector.
        """
        if self.words is not None:
            return self.words.along(self.train.inputs, self.train.targets, vectors)
        if self.layers is not None or vectors.shape[1] > FEW_VECTORS:
            return torch.cat([made @ vectors for _, made in self.train_gradients()])
        made = []
        for rows in blocks(self.n_train, 4 * self.bytes_per_row):
            block = self.train.take(rows)
            made.append(torch.stack([jvp(lambda t: self.losses(t, block), (self.theta,), (v,))[1] for v in vectors.T], dim=1))  # noqa: B023
        return torch.cat(made)

    def loss_gradients(self, examples: Examples) -> Float[Tensor, "n p"]:
        """∇ℓ of any examples, all at once. Memory: n x P numbers."""
        made = self.theta.new_empty(len(examples), self.n_params)
        for rows, parts in self._rows(self.objective.loss, examples):
            _flat(parts, made[rows])
        return made

    def test_gradients(self, columns: slice = slice(None)) -> Float[Tensor, "n_test p"]:
        """∇m_t for the test examples in `columns` (all), or their mean when the measurement is of the whole set.

        Memory: n_test x P numbers.
        """
        if self.measurement.whole_set:
            total = torch.zeros_like(self.theta)
            for rows, parts in self._rows(self.measured, self.test):
                total += _flat(parts, self.theta.new_empty(rows.stop - rows.start, self.n_params)).sum(0)
            return total.unsqueeze(0) / len(self.test)
        examples = self.test.take(columns)
        made = self.theta.new_empty(len(examples), self.n_params)
        for rows, parts in self._rows(self.measured, examples):
            _flat(parts, made[rows])
        return made

    def columns(self, copies: float) -> list[slice]:
        """Slices of the test examples such that so many P-vectors for each stay within half of `memory`: a function of sizes alone."""
        each = max(1, int(copies * self.theta.nbytes))
        return blocks(self.n_test, each, self.memory // 2)

    def _rows(self, value: Value, examples: Examples) -> Iterator[tuple[slice, list[Rows]]]:
        if self.layers is None:
            yield from self._traced(value, examples)
            return
        for rows, kept in self.passes(examples, 2 * self.theta.nbytes):
            yield rows, kept.rows(gradients.slope(value, kept.outputs, examples.targets[rows]))

    def _traced(self, value: Value, examples: Examples) -> Iterator[tuple[slice, list[Rows]]]:
        """For any module: reverse mode through torch.func, vectorised over the rows."""
        whole = whole_layer(self.n_params)

        def one(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return value(self.outputs(theta, x.unsqueeze(0)), y.unsqueeze(0)).squeeze(0)

        for rows in blocks(len(examples), 4 * self.bytes_per_row + 2 * self.theta.nbytes):
            block = examples.take(rows)
            made = vmap(grad(one), in_dims=(None, 0, 0))(self.theta, block.inputs, block.targets)
            yield rows, [Rows(whole, None, None, made.unsqueeze(1))]


def whole_layer(size: int) -> Layer:
    """All selected parameters as one layer, for modules that are taken as a whole."""
    return Layer("", "any", slice(0, size), None, 1)


def choose(which: str, module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that `Problem.select` means."""
    names = tuple(name for name, _ in module.named_parameters())
    if which == "all":
        return names
    if which == "last_layer":
        return last_layer(module)
    chosen = tuple(name for name in names if fnmatchcase(name, which))
    if not chosen:
        raise InfluxError(f"method.params={which} matches none of the parameters {', '.join(names)}.{nearest(which, names)}")
    return chosen


def _join(parts: tuple[Rows, ...]) -> Rows:
    """Blocks of rows of one layer as one."""
    layer = parts[0].layer
    if parts[0].inputs is None:
        return Rows(layer, None, None, torch.cat([part.matrices for part in parts]))
    inputs, deltas = ([getattr(part, name) for part in parts] for name in ("inputs", "deltas"))
    return Rows(layer, torch.cat(inputs), torch.cat(deltas))


def _flat(parts: list[Rows], out: Float[Tensor, "rows p"]) -> Float[Tensor, "rows p"]:
    for part in parts:
        part.write(out)
    return out
