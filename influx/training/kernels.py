"""Elementary operations that PyTorch's CPU build runs slowly, done faster with the same result to rounding.

Measured on one AVX-512 core (AMD EPYC, torch 2.13): tanh six times, 2 x 2 average pooling two to three times, float32 matrix products
twice as fast. On a GPU PyTorch's own are used.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def product(left: Float[Tensor, "m k"], right: Float[Tensor, "k n"]) -> Float[Tensor, "m n"]:
    """`left @ right`; float32 on a CPU through oneDNN, which uses AVX-512 on AMD too, where the default library does not."""
    if left.is_cuda or left.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return left @ right
    return torch.ops.mkldnn._linear_pointwise(left, right.T, None, "none", [], "")


def tanh_(z: Tensor) -> Tensor:
    """tanh in place as 2 sigmoid(2z) - 1. Its error is a rounding of 1, not of a small result."""
    if z.is_cuda:
        return z.tanh_()
    return torch.add(torch.tensor(-1.0, dtype=z.dtype), z.mul_(2).sigmoid_(), alpha=2, out=z)


def swift(module: nn.Module) -> nn.Module:
    """A copy of `module`, its children shared, in which slow layers have faster stand-ins; for use one model at a time, on a CPU."""
    result = copy.copy(module)
    result._modules = {
        name: None if child is None else _stand_in(child) for name, child in module._modules.items()
    }  # named_children leaves out repeats
    return result


def _stand_in(layer: nn.Module) -> nn.Module:
    if type(layer) is nn.Tanh:
        return Tanh()
    if type(layer) is nn.AvgPool2d and _halves(layer):
        return Halve()
    return swift(layer) if any(layer.children()) else layer


def _halves(pool: nn.AvgPool2d) -> bool:
    plain = pool.padding in (0, (0, 0)) and not pool.ceil_mode and pool.divisor_override is None
    return plain and pool.kernel_size in (2, (2, 2)) and pool.stride in (2, (2, 2))


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        y = tanh_(z.clone())
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(above, y)


class _Halve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n h2 w2"]:
        ctx.shape = x.shape
        x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]  # an odd last row or column takes no part
        rows = x[..., 0::2, :] + x[..., 1::2, :]
        return (rows[..., 0::2] + rows[..., 1::2]).mul_(0.25)

    @staticmethod
    def backward(ctx: Any, above: Float[Tensor, "*n h2 w2"]) -> Float[Tensor, "*n h w"]:
        odd = any(side % 2 for side in ctx.shape[-2:])
        below = above.new_zeros(ctx.shape) if odd else above.new_empty(ctx.shape)
        quarter, (h, w) = above * 0.25, above.shape[-2:]
        for row in (0, 1):
            for column in (0, 1):
                below[..., row : 2 * h : 2, column : 2 * w : 2] = quarter
        return below


class Tanh(nn.Module):
    """nn.Tanh."""

    def forward(self, z: Tensor) -> Tensor:
        return _Tanh.apply(z)


class Halve(nn.Module):
    """nn.AvgPool2d(2)."""

    def forward(self, x: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n h2 w2"]:
        return _Halve.apply(x)
