"""How a model was trained, step by step: kept at a few places, trained again from there to the bit where more is asked for.

Memory is bounded whatever the number of steps: forwards, one step at a time; backwards, a stretch that fits the limit is trained again
and kept whole, a longer one is halved first (Griewank 1992; each halving trains the stretch's first half once more).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Descent:
    """Stochastic gradient descent with momentum: v ← μ v + g + λθ; θ ← θ − lr·v, or with Nesterov's θ ← θ − lr·(g + λθ + μ v)."""

    momentum: float
    nesterov: bool
    weight_decay: float


@dataclass(frozen=True)
class Snapshot:
    """Where training stood before step `step`: the parameters, and what the optimiser remembered."""

    step: int
    params: dict[str, Tensor]
    memory: tuple[Tensor, ...] = ()

    def kept(self) -> Snapshot:
        """With tensors of its own: training goes on in the ones that it was given."""
        return Snapshot(self.step, {name: value.clone() for name, value in self.params.items()}, tuple(m.clone() for m in self.memory))

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in (*self.params.values(), *self.memory))


@dataclass(frozen=True)
class Step:
    """One update: where training stood before it, the training rows of its batch, and its learning rate."""

    before: Snapshot
    rows: Int[Tensor, " batch"]
    lr: float

    @property
    def params(self) -> dict[str, Tensor]:
        return self.before.params

    def kept(self) -> Step:
        return Step(self.before.kept(), self.rows, self.lr)


@dataclass(frozen=True)
class Trajectory:
    """One model's training.

    `snapshots` ascend and begin at step 0; `replay(snapshot, stop)` trains on from one and yields the steps before `stop`, each valid until
    the next is asked for; `rates[t]` is the learning rate of step t, `final` the parameters after the last; `limit` is the most bytes
    of steps that are held at once; `descent` is None for optimisers with a memory beyond a velocity (Adam).
    """

    snapshots: tuple[Snapshot, ...]
    rates: tuple[float, ...]
    final: dict[str, Tensor]
    replay: Callable[[Snapshot, int], Iterator[Step]]
    limit: int
    descent: Descent | None

    @property
    def n_steps(self) -> int:
        return len(self.rates)

    @property
    def checkpoints(self) -> list[tuple[dict[str, Tensor], float]]:
        """Parameters along training with the learning rate of the step that led there: the snapshots but the first, and the end."""
        along = [(snapshot.params, self.rates[snapshot.step - 1]) for snapshot in self.snapshots[1:]]
        return [*along, (self.final, self.rates[-1])]

    @property
    def steps(self) -> tuple[Step, ...]:
        """All of them at once. Memory: steps x P numbers and the optimiser's own."""
        return tuple(step.kept() for step in self.forward())

    def forward(self) -> Iterator[Step]:
        """Every step in order, each valid until the next is asked for. Cost: training once more."""
        return self.replay(self.snapshots[0], self.n_steps)

    def backward(self) -> Iterator[Step]:
        """Every step, the last one first. Cost: training once more, and a half more for each halving that the limit asks for."""
        ends = [*(snapshot.step for snapshot in self.snapshots[1:]), self.n_steps]
        for snapshot, stop in reversed(list(zip(self.snapshots, ends, strict=True))):
            yield from self._reversed(snapshot, stop)

    def _reversed(self, start: Snapshot, stop: int) -> Iterator[Step]:
        length = stop - start.step
        if length <= 2 or length * start.nbytes <= self.limit:
            yield from reversed([step.kept() for step in self.replay(start, stop)])
            return
        halfway = start.step + length // 2
        middle = next(step.before.kept() for step in self.replay(start, halfway + 1) if step.before.step == halfway)
        yield from self._reversed(middle, stop)
        yield from self._reversed(start, halfway)
