"""Curvature products of plain chains of linear and elementwise layers, by hand.

Every step of a product is one matrix product for all vectors.

The R-operator for the Hessian (Pearlmutter 1994) and its Gauss-Newton part (Schraudolph 2002). For a layer with inputs h,
pre-activations z = hWᵀ + b and outputs φ(z), vectors V, and a dot for the derivative along V:

    forward    ż = ḣWᵀ + hV_Wᵀ + v_b,   outputs move by φ'(z) ż
    top        ρ = (∂²ℓ/∂f²) ḟ
    backward   (AV)_W = Σ_rows ρᵀh [+ δᵀḣ],   (AV)_b = Σ_rows ρ,   below: ρ ← φ'(ρW [+ δV_W]) [+ φ'' ż (δW)]

with δ = ∂ℓ/∂z. The terms in brackets are the Hessian's alone. `torch.func` gives the same numbers, several times slower.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from influx import stacking
from influx.objectives import Objective

Vectors = dict[str, Tensor]  # by parameter name, each [m, *shape]


@dataclass(frozen=True)
class Layer:
    """A linear layer on a block of rows, with the elementwise function behind it (none: the last layer, or two linear ones in a row)."""

    name: str
    weight: Float[Tensor, "out in"]
    inputs: Float[Tensor, "rows in"]
    first: Float[Tensor, "rows out"] | None  # φ'(z)
    second: Float[Tensor, "rows out"] | None  # φ''(z)

    def after(self, moved: Float[Tensor, "rows *m out"]) -> Float[Tensor, "rows *m out"]:
        """φ'(z) times what moves behind or above it."""
        if self.first is None:
            return moved
        return moved * (self.first if moved.dim() == 2 else self.first.unsqueeze(1))


@dataclass(frozen=True)
class Chain:
    """A chain at fixed parameters on a block of rows: what each product with its curvature needs, computed once."""

    layers: tuple[Layer, ...]
    curved: Float[Tensor, "rows out out"]  # ∂²ℓ/∂f²
    above: tuple[Float[Tensor, "rows out"], ...]  # ∂ℓ/∂φ(z) of each layer

    def product(self, vectors: Vectors, hessian: bool) -> Vectors:
        """(Σ_rows C_i) V over the parameters named in `vectors`; the others do not move."""
        h_dots, z_dots = self._forward(vectors)
        rho = torch.bmm(z_dots[-1], self.curved)  # [rows, m, out]
        result: Vectors = {}
        for layer, above, h_dot, z_dot in reversed(list(zip(self.layers, self.above, h_dots, z_dots, strict=True))):
            rho = layer.after(rho)
            if hessian and layer.second is not None:
                rho = rho + (layer.second * above).unsqueeze(1) * z_dot
            delta = layer.after(above)
            weight, bias = f"{layer.name}.weight", f"{layer.name}.bias"
            if weight in vectors:
                result[weight] = (rho.flatten(1).T @ layer.inputs).view_as(vectors[weight])
                if hessian and h_dot is not None:
                    result[weight] += torch.tensordot(delta, h_dot, dims=([0], [0])).transpose(0, 1)  # [out, m, in]
            if bias in vectors:
                result[bias] = rho.sum(0)
            if layer is self.layers[0]:
                break
            rho = rho @ layer.weight
            if hessian and weight in vectors:
                rho = rho + torch.tensordot(delta, vectors[weight], dims=([1], [1]))  # [rows, m, in]
        return result

    def _forward(self, vectors: Vectors) -> tuple[list[Float[Tensor, "rows m in"] | None], list[Float[Tensor, "rows m out"]]]:
        """ḣ and ż of every layer; ḣ is None where nothing below moves."""
        h_dots: list[Tensor | None] = []
        z_dots: list[Tensor] = []
        h_dot: Tensor | None = None
        for layer in self.layers:
            weight, bias = vectors.get(f"{layer.name}.weight"), vectors.get(f"{layer.name}.bias")
            parts = [] if h_dot is None else [h_dot @ layer.weight.T]
            if weight is not None:  # one product for all vectors: [rows, m out]
                parts.append((layer.inputs @ weight.flatten(0, 1).T).view(len(layer.inputs), *weight.shape[:2]))
            if bias is not None:
                parts.append(bias.unsqueeze(0))
            h_dots.append(h_dot)
            z_dots.append(sum(parts[1:], parts[0]) if parts else layer.inputs.new_zeros(1, 1, 1))
            h_dot = layer.after(z_dots[-1]) if parts else None
        return h_dots, z_dots


def fits(module: nn.Module) -> bool:
    """Whether `module` is a chain of linear layers with at most one elementwise function directly behind each."""
    if not stacking.is_layered(module):
        return False
    parts = [part for _, part in stacking.chain(module) if not isinstance(part, nn.Flatten)]
    return all(isinstance(part, nn.Linear) or (at > 0 and isinstance(parts[at - 1], nn.Linear)) for at, part in enumerate(parts))


def chain(
    module: nn.Module,
    params: dict[str, Tensor],
    inputs: Float[Tensor, " rows *shape"],
    targets: Shaped[Tensor, " rows"],
    objective: Objective,
) -> Chain:
    """Run a module that `fits` on a block of rows and keep what products need. Memory: a few times its layer outputs."""
    layers, outputs = _run(module, params, inputs)
    gradient, curved = of_outputs(outputs, targets, objective)
    return Chain(layers, curved, _above(layers, gradient))


def _run(module: nn.Module, params: dict[str, Tensor], inputs: Float[Tensor, " rows *shape"]) -> tuple[tuple[Layer, ...], Tensor]:
    """The layers with their inputs on these rows, and the outputs."""
    layers: list[Layer] = []
    hidden = inputs
    for name, part in stacking.chain(module):
        if isinstance(part, nn.Flatten):
            hidden = hidden.flatten(1)
        elif isinstance(part, nn.Linear):
            layers.append(Layer(name, params[f"{name}.weight"], hidden, None, None))
            hidden = nn.functional.linear(hidden, params[f"{name}.weight"], params.get(f"{name}.bias"))
        else:
            hidden, first, second = _elementwise(part, hidden)
            layers[-1] = replace(layers[-1], first=first, second=second)
    return tuple(layers), hidden


def _above(layers: tuple[Layer, ...], gradient: Float[Tensor, "rows out"]) -> tuple[Float[Tensor, "rows out"], ...]:
    """∂/∂φ(z) of each layer, from the gradient at the outputs down."""
    above = [gradient]
    for layer in reversed(layers[1:]):
        above.append(layer.after(above[-1]) @ layer.weight)
    return tuple(reversed(above))


def _elementwise(function: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """φ(z), φ'(z), φ''(z)."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_(True)
        value = function(leaf.clone())  # it may work in place
        first = torch.autograd.grad(value.sum(), leaf, create_graph=True)[0]
        second = torch.autograd.grad(first.sum(), leaf)[0] if first.requires_grad else torch.zeros_like(z)
    return value.detach(), first.detach(), second


def of_outputs(
    outputs: Float[Tensor, "rows out"], targets: Shaped[Tensor, " rows"], objective: Objective
) -> tuple[Float[Tensor, "rows out"], Float[Tensor, "rows out out"]]:
    """∂ℓ/∂f and ∂²ℓ/∂f² of each row. Rows do not see one another: with a copy of all rows an output, one backward pass gives a column of
    the second from each copy."""
    count, out = outputs.shape
    with torch.enable_grad():
        leaf = outputs.detach().repeat(out, 1).requires_grad_(True)
        aims = targets.repeat(out, *[1] * (targets.dim() - 1))
        gradient = torch.autograd.grad(objective.loss(leaf, aims).sum(), leaf, create_graph=True)[0]
        first = gradient.detach()[:count]
        if not gradient.requires_grad:  # a loss that is linear in the outputs
            return first, first.new_zeros(count, out, out)
        own = gradient.view(out, count, out).diagonal(dim1=0, dim2=2)  # [rows, out]: of copy c its output c
        columns = torch.autograd.grad(own.sum(), leaf)[0]
    return first, columns.view(out, count, out).permute(1, 2, 0).contiguous()
