"""A trained model with its record, and as the tensors that the store keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from influx.trajectory import Snapshot

HISTORY = ("epoch", "loss", "objective", "accuracy", "gradient_norm")  # columns of a training's record


@dataclass(frozen=True)
class Trained:
    """One trained model and its record; `reused` when it came from the store."""

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    gradient_norm: float
    history: list[dict[str, float]]
    seconds: float
    reused: bool = False
    snapshots: tuple[Snapshot, ...] = ()


def to_store(trained: Trained) -> dict[str, Tensor]:
    columns = {name: torch.tensor([row[name] for row in trained.history], dtype=torch.float64) for name in HISTORY}
    return {
        **{f"params/{name}": value for name, value in trained.params.items()},
        **{f"buffers/{name}": value for name, value in trained.buffers.items()},
        **{f"history/{name}": value for name, value in columns.items()},
        "gradient_norm": torch.tensor(trained.gradient_norm, dtype=torch.float64),
        "seconds": torch.tensor(trained.seconds, dtype=torch.float64),
    }


def snapshots_to_store(snapshots: tuple[Snapshot, ...]) -> dict[str, Tensor]:
    return {
        f"{kind}/{snapshot.step}/{name}": value
        for snapshot in snapshots
        for kind, named in (("params", snapshot.params), ("memory", {str(at): part for at, part in enumerate(snapshot.memory)}))
        for name, value in named.items()
    }


def snapshots_from_store(tensors: Mapping[str, Tensor], like: dict[str, Tensor], marks: tuple[int, ...]) -> tuple[Snapshot, ...]:
    """In the order and on the device of the parameters `like`."""
    device = next(iter(like.values())).device
    found = []
    for step in marks:
        parts = sum(name.startswith(f"memory/{step}/") for name in tensors)
        memory = tuple(tensors[f"memory/{step}/{at}"].to(device) for at in range(parts))
        found.append(Snapshot(step, {name: tensors[f"params/{step}/{name}"].to(device) for name in like}, memory))
    return tuple(found)


def from_store(tensors: Mapping[str, Tensor]) -> Trained:
    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    columns = {name: part("history/")[name].tolist() for name in HISTORY}
    history = [dict(zip(HISTORY, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Trained(part("params/"), part("buffers/"), tensors["gradient_norm"].item(), history, tensors["seconds"].item(), True)
