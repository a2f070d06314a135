"""K parameter sets of one module, run side by side on the same inputs.

Parameters are dictionaries of tensors with a leading axis of K. Plain stacks of linear layers and activations go through batched
matrix products: the first layer of all K models is one product, because they see the same inputs. Any other module goes through
`torch.func.vmap`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

Stack = dict[str, Tensor]

BLOCK_BYTES = 64 * 2**20  # aim for the temporaries of one block of rows, vectors or models
ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.SELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Identity)


def stack(tensors: dict[str, Tensor], models: int) -> Stack:
    """K copies of one parameter set, each with storage of its own."""
    return {name: value.unsqueeze(0).repeat(models, *[1] * value.dim()) for name, value in tensors.items()}


def unstack(stacked: Stack, model: int) -> dict[str, Tensor]:
    """The parameters of one of the K models."""
    return {name: value[model].clone() for name, value in stacked.items()}


def is_layered(module: nn.Module) -> bool:
    """Whether `module` is a plain chain of flatten, linear and elementwise layers: no forward of its own, no hooks, no shared weights."""
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return False
    linear = [part for part in module if isinstance(part, nn.Linear)]
    plain = all(type(part) in (nn.Flatten, nn.Linear, *ELEMENTWISE) for part in module)
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    return plain and not hooked and len(linear) == len(set(linear))


def chain(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The parts of a layered module in order, a part that is used twice twice (`named_children` would give it once)."""
    return list(module._modules.items())  # type: ignore[arg-type]


def mixes_rows(module: nn.Module) -> bool:
    """Whether a row's output depends on its batch in training mode (batch normalisation)."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def outputs(module: nn.Module, params: Stack, buffers: Stack, inputs: Float[Tensor, " batch *shape"]) -> Float[Tensor, "k batch out"]:
    """The outputs of K models. Modules in training mode update their `buffers` in place, each model its own; dropout masks are shared."""
    if is_layered(module):
        return _layered(module, params, inputs)

    def one(p: Stack, b: Stack) -> Tensor:
        return functional_call(module, (p, b), (inputs,))

    return torch.func.vmap(one, randomness="same")(params, buffers)


def _layered(module: nn.Module, params: Stack, inputs: Tensor) -> Tensor:
    hidden = inputs
    for name, layer in chain(module):
        if isinstance(layer, nn.Flatten):
            hidden = hidden.flatten(1)
        elif isinstance(layer, nn.Linear):
            hidden = _linear(hidden, params[f"{name}.weight"], params.get(f"{name}.bias"))
        else:
            hidden = layer(hidden)
    return hidden


def _linear(inputs: Tensor, weight: Float[Tensor, "k out in"], bias: Float[Tensor, "k out"] | None) -> Float[Tensor, "k batch out"]:
    models, out, _ = weight.shape
    if inputs.dim() == 2:  # still shared by all models: one matrix product
        result = (inputs @ weight.flatten(0, 1).T).view(len(inputs), models, out).transpose(0, 1)
        return result if bias is None else result + bias.unsqueeze(1)
    if bias is None:
        return torch.bmm(inputs, weight.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), inputs, weight.transpose(1, 2))


def bytes_per_row(module: nn.Module, params: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Float[Tensor, " n *shape"]) -> int:
    """Bytes of all layers' outputs for one example of one model: what a forward pass of a row keeps."""
    leaves = [m for m in module.modules() if not any(m.children()) and not isinstance(m, nn.Flatten | nn.Identity)]
    numbers: list[int] = []
    hooks = [leaf.register_forward_hook(lambda _m, _i, out: numbers.append(out.numel())) for leaf in leaves]
    try:
        with torch.no_grad():
            functional_call(module, (params, buffers), (inputs[:1],))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(numbers) * inputs.element_size()


def blocks(n: int, bytes_each: int, limit: int | None = None) -> list[slice]:
    """Slices of `range(n)` whose temporaries stay near `limit` (`BLOCK_BYTES`), a function of sizes only, never of the moment's memory."""
    size = max(1, (limit or BLOCK_BYTES) // max(1, bytes_each))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
