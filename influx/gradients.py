"""Per-example gradients, layer by layer, as the two factors that they are made of.

For a linear layer with inputs h and output gradients δ = ∂value/∂z, an example's gradient is `δ [h, 1]ᵀ`, the bias folded in; for a
convolution it is the sum of that product over places, h being the patches (Goodfellow 2015, "Efficient per-example gradient
computations"; Grosse & Martens 2016 for convolutions). One forward pass keeps every h, one backward pass gives every δ, and inner
products of gradients need no gradient at all:

    ⟨δ₁ h₁ᵀ, δ₂ h₂ᵀ⟩ = (δ₁·δ₂)(h₁·h₂).

Affine group normalisation, and batch normalisation in evaluation mode, have a form of their own; a module with parameters anywhere else
falls back to `vmap(grad)`, several times slower. Which of them applies is decided by comparing with autograd on two rows, never guessed
from the module's looks alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

State = dict[str, Tensor]
Value = Callable[[Tensor, Tensor], Tensor]  # outputs [rows, out], targets [rows] -> [rows]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)


@dataclass(frozen=True)
class Layer:
    """A layer whose weight, bias or both are selected: a matrix [out, in], the bias its last column.

    `weight` and `bias` are their places in θ, None for what is not selected. A layer that is no matrix product (`kind` "norm" or "any") has
    out = 1, and its parameters in θ's own order.
    """

    name: str
    kind: str
    weight: slice | None
    bias: slice | None
    out: int

    @property
    def size(self) -> int:
        return sum(part.stop - part.start for part in (self.weight, self.bias) if part is not None)

    @property
    def shape(self) -> tuple[int, int]:
        return self.out, self.size // self.out

    def gather(self, vectors: Float[Tensor, "rows p"]) -> Float[Tensor, "rows out in"]:
        """This layer's part of vectors in θ's order."""
        parts = [vectors[:, part].unflatten(1, (self.out, -1)) for part in (self.weight, self.bias) if part is not None]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def scatter(self, matrices: Float[Tensor, "rows out in"], vectors: Float[Tensor, "rows p"]) -> None:
        """The inverse of `gather`: write matrices into vectors in θ's order."""
        columns = 0
        for part in (self.weight, self.bias):
            if part is not None:
                width = (part.stop - part.start) // self.out
                vectors[:, part].unflatten(1, (self.out, width)).copy_(matrices[:, :, columns : columns + width])
                columns += width


@dataclass(frozen=True)
class Rows:
    """Gradients of a block of rows with respect to one layer: `matrices`, or at one place an example the factors `deltas` and `inputs`."""

    layer: Layer
    inputs: Float[Tensor, "rows in"] | None
    deltas: Float[Tensor, "rows out"] | None
    dense: Float[Tensor, "rows out in"] | None = None

    @property
    def matrices(self) -> Float[Tensor, "rows out in"]:
        if self.dense is not None:
            return self.dense
        assert self.deltas is not None
        assert self.inputs is not None
        return self.deltas.unsqueeze(2) * self.inputs.unsqueeze(1)

    @property
    def flat(self) -> Float[Tensor, "rows outin"]:
        return self.matrices.flatten(1)

    def dot(self, other: Rows) -> Float[Tensor, "rows others"]:
        """Inner products of each of these gradients with each of the other's."""
        if self.deltas is None or self.inputs is None or other.deltas is None or other.inputs is None:
            return self.flat @ other.flat.T
        return (self.inputs @ other.inputs.T).mul_(self.deltas @ other.deltas.T)

    def squared_norms(self) -> Float[Tensor, " rows"]:
        if self.deltas is None or self.inputs is None:
            return self.flat.square().sum(1)
        return self.inputs.square().sum(1) * self.deltas.square().sum(1)

    def write(self, vectors: Float[Tensor, "rows p"]) -> None:
        """Into vectors in θ's order, without a copy in between where there are factors."""
        layer = self.layer
        if self.deltas is None or self.inputs is None:
            layer.scatter(self.matrices, vectors)
            return
        if layer.weight is not None:
            width = (layer.weight.stop - layer.weight.start) // layer.out
            place = vectors[:, layer.weight].unflatten(1, (layer.out, width))
            torch.mul(self.deltas.unsqueeze(2), self.inputs[:, :width].unsqueeze(1), out=place)
        if layer.bias is not None:
            vectors[:, layer.bias] = self.deltas


@dataclass(frozen=True)
class Pass:
    """One forward pass of a block of rows with what a backward pass needs; `inputs` are each layer's, with ones for a bias."""

    layers: tuple[Layer, ...]
    outputs: Float[Tensor, "rows out"]
    inputs: tuple[Float[Tensor, "rows places in"], ...]
    results: tuple[tuple[Tensor, ...], ...]  # each layer's results in the graph, one a call

    def deltas(self, seed: Float[Tensor, "rows out"], *, keep: bool = False) -> list[Float[Tensor, "rows places out"]]:
        """Each layer's output gradients when the outputs' gradients are `seed`; `keep` allows another seed after it."""
        wanted = [result for calls in self.results for result in calls]
        with torch.enable_grad():  # not the seed as an argument: that imports torch's symbolic shapes, which takes half a second
            value = (self.outputs * seed).sum()
        found = iter(torch.autograd.grad(value, wanted, retain_graph=keep, allow_unused=True))
        deltas = []
        for layer, calls in zip(self.layers, self.results, strict=True):
            parts = [torch.zeros_like(result) if delta is None else delta for result, delta in ((r, next(found)) for r in calls)]
            deltas.append(_joined([_places(layer, part) for part in parts]))
        return deltas

    def rows(self, seed: Float[Tensor, "rows out"]) -> list[Rows]:
        """The gradients of Σ_rows ⟨seed, outputs⟩, a row at a time."""
        return [_rows(*parts) for parts in zip(self.layers, self.inputs, self.deltas(seed), strict=True)]


def find_layers(module: nn.Module, selected: dict[str, torch.Size]) -> tuple[Layer, ...] | None:
    """The layers that hold the selected parameters (names and shapes in θ's order); None when one is in no layer of a known kind."""
    places, start = {}, 0
    for name, shape in selected.items():
        places[name] = slice(start, start + math.prod(shape))
        start += math.prod(shape)
    layers = []
    for name, part in module.named_modules():
        own = {short: places.pop(f"{name}.{short}" if name else short, None) for short in ("weight", "bias")}
        if own["weight"] is None and own["bias"] is None:
            continue
        kind = _kind(part)
        if kind is None:
            return None
        out = 1 if kind == "norm" else part.weight.shape[0]  # type: ignore[operator,union-attr,index]
        layers.append(Layer(name, kind, own["weight"], own["bias"], out))
    return None if places else tuple(layers)


def _kind(part: nn.Module) -> str | None:
    if type(part) is nn.Linear:
        return "linear"
    if type(part) is nn.Conv2d and part.groups == 1 and part.padding_mode == "zeros" and not isinstance(part.padding, str):
        return "conv"
    fixed = type(part) is nn.GroupNorm or not part.training  # batch statistics are no function of one row
    return "norm" if type(part) in NORMS and fixed and part.affine else None  # type: ignore[union-attr]


@torch.enable_grad()
def forward(module: nn.Module, layers: tuple[Layer, ...], state: State, inputs: Shaped[Tensor, " rows *shape"]) -> Pass:
    """Run the module on a block of rows. Only what lies above the lowest of `layers` enters a graph."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {layer.name: [] for layer in layers}
    with _hooked(module, seen):
        outputs = functional_call(module, {name: value.detach() for name, value in state.items()}, (inputs,))
    kept = []
    for layer in layers:
        calls = [_inputs(module.get_submodule(layer.name), layer, given, state) for given, _ in seen[layer.name]]
        kept.append(_joined(calls) if calls else inputs.new_empty(len(inputs), 0, layer.shape[1]))
    results = tuple(tuple(result for _, result in seen[layer.name]) for layer in layers)
    return Pass(layers, outputs, tuple(kept), results)


@contextmanager
def _hooked(module: nn.Module, seen: dict[str, list[tuple[Tensor, Tensor]]]) -> Iterator[None]:
    """Within, every call of a layer named in `seen` notes its input and its result."""
    overwrites = any(getattr(part, "inplace", False) for part in module.modules())

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> Tensor:
            probe = result if result.requires_grad else result.detach().requires_grad_(True)
            seen[name].append((given[0].detach(), probe))
            return probe.clone() if overwrites else probe  # a function in place would take the probe's derivative away

        return hook

    hooks = [module.get_submodule(name).register_forward_hook(note(name)) for name in seen]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _inputs(part: nn.Module, layer: Layer, given: Tensor, state: State) -> Float[Tensor, "rows places in"]:
    """h of one call, with ones for a selected bias."""
    if isinstance(part, nn.Conv2d):
        return _patches(part, layer, given)
    if isinstance(part, nn.Linear):
        h = given.reshape(len(given), -1, given.shape[-1])
    else:
        bare = _normalised(part, layer, given, state)
        return bare.flatten(2).transpose(1, 2) if bare.dim() > 2 else bare.unsqueeze(1)
    ones = h.new_ones(*h.shape[:2], 1)
    parts = [h] * (layer.weight is not None) + [ones] * (layer.bias is not None)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _normalised(part: nn.Module, layer: Layer, given: Tensor, state: State) -> Tensor:
    """What a normalisation scales and shifts."""
    if isinstance(part, nn.GroupNorm):
        return nn.functional.group_norm(given, part.num_groups, eps=part.eps)
    return nn.functional.batch_norm(given, state[f"{layer.name}.running_mean"], state[f"{layer.name}.running_var"], eps=part.eps)  # type: ignore[arg-type]


def _patches(part: nn.Conv2d, layer: Layer, given: Float[Tensor, "rows channels height width"]) -> Float[Tensor, "rows places in"]:
    """What a convolution multiplies its weight with at each place; one copy, three times as fast as `unfold` and a column of ones."""
    (kh, kw), (down, right), (dh, dw) = part.kernel_size, part.stride, part.dilation
    padded = nn.functional.pad(given, [side for size in reversed(part.padding) for side in (size, size)])  # type: ignore[misc]
    seen = padded.unfold(2, dh * (kh - 1) + 1, down).unfold(3, dw * (kw - 1) + 1, right)[..., ::dh, ::dw]  # [rows, channels, h, w, kh, kw]
    size, places = given.shape[1] * kh * kw, seen.shape[2] * seen.shape[3]
    made = given.new_empty(len(given), size * (layer.weight is not None) + (layer.bias is not None), places)
    if layer.weight is not None:
        made[:, :size].view(len(given), given.shape[1], kh, kw, *seen.shape[2:4]).copy_(seen.permute(0, 1, 4, 5, 2, 3))
    if layer.bias is not None:
        made[:, -1] = 1.0
    return made.transpose(1, 2)


def _joined(calls: list[Float[Tensor, "rows _ size"]]) -> Float[Tensor, "rows places size"]:
    """The places of all calls of a layer; those of a single one, as nearly always, as they are."""
    return calls[0] if len(calls) == 1 else torch.cat(calls, dim=1)


def _places(layer: Layer, delta: Tensor) -> Float[Tensor, "rows places out"]:
    if layer.kind == "linear":
        return delta.reshape(len(delta), -1, delta.shape[-1])
    return delta.flatten(2).transpose(1, 2) if delta.dim() > 2 else delta.unsqueeze(1)


def _rows(layer: Layer, inputs: Float[Tensor, "rows places in"], deltas: Float[Tensor, "rows places out"]) -> Rows:
    if layer.kind == "norm":  # elementwise: scale and shift of each feature, no matrix
        sums = [(inputs * deltas).sum(1)] * (layer.weight is not None) + [deltas.sum(1)] * (layer.bias is not None)
        return Rows(layer, None, None, torch.cat(sums, dim=1).unsqueeze(1))
    if inputs.shape[1] == 1:
        return Rows(layer, inputs.squeeze(1), deltas.squeeze(1))
    return Rows(layer, None, None, torch.bmm(deltas.transpose(1, 2), inputs))


def slope(value: Value, outputs: Float[Tensor, "rows out"], targets: Shaped[Tensor, " rows"]) -> Float[Tensor, "rows out"]:
    """∂value/∂outputs of each row."""
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_(True)
        return torch.autograd.grad(value(leaf, targets).sum(), leaf)[0]


def numbers_per_row(module: nn.Module, layers: tuple[Layer, ...], state: State, inputs: Shaped[Tensor, " n *shape"]) -> int:
    """How many numbers a forward pass of one row keeps for its gradients: layer inputs as patches, and their results."""
    with torch.no_grad():
        made = forward(module, layers, state, inputs[:1])
    return sum(part.numel() for part in made.inputs) + 2 * sum(result.numel() for calls in made.results for result in calls)
