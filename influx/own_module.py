"""A user's own module, or a function that makes one, as the model of an experiment."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from influx.errors import InfluxError
from influx.models import Model
from influx.models.base import Shape
from influx.own import Held
from influx.seeding import isolated

OwnModule = nn.Module | Callable[[], nn.Module]
DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class OwnModel(Model):
    """A module's present parameters are where every training starts, whatever the seed; a function is called once for each seed, with
    torch's global generator set by it."""

    held: Held

    def module(self, shape: Shape) -> nn.Module:
        return _made(self.held.it).cpu()


def module_of(model: OwnModule, seed: int, all_trained: bool) -> nn.Module:
    """A copy of the module, or one that the function makes, in evaluation mode. `all_trained`: every parameter is taken for trained.

    Raises:
        InfluxError: it is no module, has no parameters, mixes number types, has numbers that are not finite, or is frozen in part.
    """
    if not callable(model):
        raise InfluxError(f"model must be a torch.nn.Module or a function that makes one; this is a {type(model).__name__}.")
    with isolated(seed, "initialisation"):
        module = _made(model)
    named = dict(module.named_parameters())
    if not named:
        raise InfluxError(f"model {type(module).__name__} has no parameters: there is nothing that examples could have an influence on.")
    kinds = {value.dtype for value in [*named.values(), *module.buffers()] if value.is_floating_point() or value.is_complex()}
    if len(kinds) > 1 or not kinds <= {*DTYPES}:
        said = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise InfluxError(f"model is in {said}; it must be in float32 or float64 throughout: model.float() or model.double().")
    broken = next((name for name, value in named.items() if not bool(torch.isfinite(value).all())), None)
    if broken is not None:
        raise InfluxError(f"model has numbers that are not finite in {broken}: its training broke down.")
    frozen = [name for name, value in named.items() if not value.requires_grad]
    if all_trained and 0 < len(frozen) < len(named):
        raise InfluxError(
            f"model is frozen in part ({frozen[0]} does not require a gradient), and all parameters are taken for trained: give the part "
            "that is trained as the model, and as inputs what the frozen part makes of yours."
        )
    return module.eval()


def width_of(module: nn.Module, inputs: Tensor) -> int:
    """Of the output for one example.

    Raises:
        InfluxError: the module does not take the inputs, gives no row of numbers an example, or other ones each time.
    """
    try:
        with torch.no_grad():
            made, again = module(inputs[:2]), module(inputs[:2])
    except (RuntimeError, ValueError) as error:
        raise InfluxError(
            f"model does not take these inputs, {tuple(inputs.shape[1:])} an example: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(made, Tensor) or made.ndim != 2 or len(made) != len(inputs[:2]):
        said = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise InfluxError(f"model must give outputs of shape [n, out]; for {len(inputs[:2])} examples it gave {said}.")
    if not torch.allclose(made, again, rtol=1e-3, atol=1e-3 * float(made.abs().nan_to_num().max()), equal_nan=True):
        raise InfluxError(
            "model draws at random in evaluation mode: it gave two outputs for one input. Draw only where self.training is true."
        )
    return made.shape[1]


def _made(model: OwnModule) -> nn.Module:
    try:
        made = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
    except TypeError as error:
        raise InfluxError(f"model must be a torch.nn.Module or a function without arguments that makes one; calling it: {error}") from error
    if not isinstance(made, nn.Module):
        raise InfluxError(f"model must be a torch.nn.Module or a function that makes one; calling it gave a {type(made).__name__}.")
    return made
