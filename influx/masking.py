"""Turn-over dropout: every training example trains a sub-network of its own (Kobayashi, Yokoi, Suzuki & Inui 2020, section 3).

Training uses example i with its own mask of hidden units (`influx.masks`); the flipped mask, the complement, has the units that i never
moved. Prediction uses the whole network. The mask that a row wants travels with its inputs as one more column, the *ticket*; training and
gradients know nothing of all this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from influx.data import Data
from influx.errors import InfluxError
from influx.masks import Masks
from influx.models.base import ACTIVATIONS, Model, Placed, Shape
from influx.stacking import mixes_rows

MASKED = (
    *ACTIVATIONS.values(), nn.CELU, nn.ELU, nn.Hardtanh, nn.Hardswish, nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.PReLU, nn.ReLU6,
    nn.Softplus, nn.Softsign, nn.Tanhshrink,
)  # fmt: skip
NAMED = ("GELUActivation", "NewGELUActivation", "FastGELUActivation", "QuickGELUActivation")  # those of the transformers library
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class Site:
    """One call of an activation whose result is masked: one bit a unit behind a linear layer, the same for all tokens of an example, or one
    a channel behind a convolution. `layer` is its number among all that could be, from 0."""

    name: str
    call: int
    units: int
    channels: bool
    layer: int = 0

    def masked(self, result: Float[Tensor, " groups each *shape"], mask: Float[Tensor, "groups units"]) -> Tensor:
        """Rows in groups, the rows of a group under the same mask."""
        after = result.dim() - 3 if self.channels else 0  # dimensions behind the units' own
        before = result.dim() - 2 - after
        return result * mask.view(len(mask), *[1] * before, self.units, *[1] * after)


def find_sites(net: nn.Module, example: Float[Tensor, " 1 *shape"], layers: Sequence[int] | None = None) -> tuple[Site, ...]:
    """The activations whose results are masked: the first behind each linear layer or convolution, if another such layer follows; of these
    the ones with a number in `layers`, counted from 1 in the order in which they run (None: all).

    They have to be modules (`nn.ReLU`, not `functional.relu`), because those are what a run of the network shows.

    Raises:
        InfluxError: there is none, or none of such a number, or the network normalises by the batch, so that examples do not train apart.
    """
    if mixes_rows(net):
        raise InfluxError(
            "method=turnover_dropout trains each example on units of its own, and batch normalisation mixes the examples of a batch: use a "
            "model without it (model.batch_norm=false)."
        )
    found = _hidden(net, example)
    if not found:
        raise InfluxError(
            "method=turnover_dropout masks hidden units, and this model has no hidden layer with an activation module behind it: use "
            "model=mlp, or another method."
        )
    beyond = [number for number in layers or () if number > len(found)]
    if beyond:
        raise InfluxError(
            f"method.sites asks for hidden layer {beyond[0]}, and this model has {len(found)} that can be masked: number them from 1 to "
            f"{len(found)}, or set method.sites=null for all."
        )
    numbered = [replace(site, layer=at) for at, site in enumerate(found)]
    return tuple(site for site in numbered if layers is None or site.layer + 1 in layers)


def _hidden(net: nn.Module, example: Float[Tensor, " 1 *shape"]) -> list[Site]:
    """All activations that can be masked, in the order in which one run of the network has them."""
    found: list[Site] = []
    waiting: list[Site] = []
    weighted: nn.Module | None = None
    calls: Counter[str] = Counter()

    def seen(name: str, part: nn.Module, result: Tensor) -> None:
        nonlocal weighted
        if isinstance(part, WEIGHTED):
            found.extend(waiting)
            waiting.clear()
            weighted = part
        elif _activates(part) and weighted is not None:
            channels = not isinstance(weighted, nn.Linear)
            waiting.append(Site(name, calls[name], result.shape[1 if channels else -1], channels))
            weighted = None
        calls[name] += 1

    leaves = {name: part for name, part in net.named_modules() if not any(part.children())}
    with _hooked(leaves, seen), torch.no_grad():
        net(example)
    return found


def _activates(part: nn.Module) -> bool:
    return isinstance(part, MASKED) or type(part).__name__ in NAMED


@contextmanager
def _hooked(parts: dict[str, nn.Module], act: Callable[[str, nn.Module, Tensor], Any]) -> Iterator[None]:
    """Within, every call of one of the parts goes through `act`; what that returns, unless None, takes the result's place."""

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], Any]:
        return lambda part, _, result: act(name, part, result)

    handles = [part.register_forward_hook(hook(name)) for name, part in parts.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class MaskedNet(nn.Module):
    """`net` under the masks that each row's ticket, the last column of its flattened inputs, asks for."""

    def __init__(self, net: nn.Module, shape: tuple[int, ...], masks: Masks, seed: int) -> None:
        super().__init__()
        self.net, self.shape, self.drawn, self.seed = net.eval(), shape, masks, seed
        self.sites = find_sites(net, torch.zeros(1, *shape, dtype=next(net.parameters()).dtype), masks.layers)

    def forward(self, inputs: Float[Tensor, "rows features1"]) -> Float[Tensor, "rows out"]:
        with self._masking(inputs[:, -1], 0):
            return self.net(bare(inputs, self.shape))

    def before(self, inputs: Float[Tensor, "rows features1"]) -> Float[Tensor, " rows *hidden"]:
        """Each row up to its first mask, whatever its ticket: what all masks of it have in common."""
        hidden = bare(inputs, self.shape)
        for part in self._chain[: self._shared]:
            hidden = part(hidden)
        return hidden

    def after(self, hidden: Float[Tensor, " rows *hidden"], tickets: Float[Tensor, " masks"]) -> Float[Tensor, "masks rows out"]:
        """Every row under every mask, from where `before` left off."""
        first = self._shared > 0
        grouped = hidden.unsqueeze(0)
        if first:
            grouped = self.sites[0].masked(grouped, self._factors(tickets, 0))
        result = grouped.expand(len(tickets), *hidden.shape).flatten(0, 1)
        with self._masking(tickets, int(first)):
            for part in self._chain[self._shared :]:
                result = part(result)
        return result.unflatten(0, (len(tickets), -1))

    def masks(self, tickets: Float[Tensor, " rows"]) -> Bool[Tensor, "rows units"]:
        """Which units of all masked layers are in use."""
        return torch.cat([self._factors(tickets, at) > 0 for at in range(len(self.sites))], dim=1)

    @property
    def _chain(self) -> list[nn.Module]:
        """The parts that run one after the other; the whole network where that cannot be known."""
        return _parts(self.net)

    @property
    def _shared(self) -> int:
        """How many of them come before the first mask; 0 when it lies inside one of them."""
        first = self.net.get_submodule(self.sites[0].name)
        places = [at for at, part in enumerate(self._chain) if part is first]
        return places[self.sites[0].call] + 1 if places else 0

    def _factors(self, tickets: Float[Tensor, " rows"], at: int) -> Float[Tensor, "rows units"]:
        site = self.sites[at]
        return self.drawn.factors(tickets, site.units, self.seed, site.layer, training=self.training)

    @contextmanager
    def _masking(self, tickets: Float[Tensor, " groups"], begin: int) -> Iterator[None]:
        """Within, the results at all sites from number `begin` on are masked, rows in as many groups as there are tickets."""
        places = {(site.name, site.call): at for at, site in enumerate(self.sites)}
        calls: Counter[str] = Counter({site.name: site.call + 1 for site in self.sites[:begin]})

        def masked(name: str, _: nn.Module, result: Tensor) -> Tensor | None:
            at = places.get((name, calls[name]))
            calls[name] += 1
            if at is None:
                return None
            grouped = result.unflatten(0, (len(tickets), -1))
            return self.sites[at].masked(grouped, self._factors(tickets, at)).flatten(0, 1)

        with _hooked({site.name: self.net.get_submodule(site.name) for site in self.sites}, masked):
            yield


def bare(inputs: Float[Tensor, "rows features1"], shape: tuple[int, ...]) -> Float[Tensor, " rows *shape"]:
    """Examples of this shape without their tickets."""
    return inputs[:, :-1].unflatten(1, shape)


def seen(module: nn.Module, inputs: Float[Tensor, " rows *shape"]) -> Float[Tensor, " rows *shape"]:
    """What an objective that makes targets of the inputs makes them of: without tickets, should the module want any."""
    return bare(inputs, module.shape) if isinstance(module, MaskedNet) else inputs


def _parts(net: nn.Module) -> list[nn.Module]:
    if isinstance(net, nn.Sequential) and type(net).forward is nn.Sequential.forward:
        return [part for child in net._modules.values() if child is not None for part in _parts(child)]
    return [net]


@dataclass(frozen=True)
class Masked(Placed):
    """`model` for examples of a shape, under masks drawn from a seed."""

    model: Model
    inputs: tuple[int, ...]
    masks: Masks
    seed: int

    def module(self, shape: Shape) -> nn.Module:
        return MaskedNet(self.model.module(replace(shape, inputs=self.inputs)), self.inputs, self.masks, self.seed)

    def place(self, module: nn.Module, data: Data, seed: int) -> None:
        """Where the model itself would start."""
        if isinstance(self.model, Placed):
            self.model.place(module.get_submodule("net"), self.unticketed(data), seed)

    def unticketed(self, data: Data) -> Data:
        """The data without tickets, as the objective sees it."""
        train, test = (bare(inputs, self.inputs) for inputs in (data.train_inputs, data.test_inputs))
        return replace(data, train_inputs=train, test_inputs=test)
