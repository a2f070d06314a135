"""Which examples train and which test: positions only, chosen by (seed, purpose) and never by the global random state.

The rule for one file, in this order, so that changing one part's size leaves the other part alone wherever it can:

1. One example in five is held out, rounded up, as `sklearn.model_selection.train_test_split(test_size=0.2,
   random_state=split_seed, stratify=labels)` does; the others may train.
2. More are held out only when `test_size` asks for more, fewer only when `train_size` leaves fewer.
3. `train_size` of the examples that may train, and `test_size` of those held out, are then drawn; null takes them all.

A file with an official test part skips 1 and 2. Every draw keeps the classes' shares when each class has two examples and
both sides of the draw can hold one of each class; otherwise it is a plain random draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from sklearn.model_selection import train_test_split

from influx.errors import InfluxError
from influx.seeding import derive

Positions = Int[np.ndarray, " n"]

ONE_IN = 5  # one example in five is held out
LARGEST_SEED = 2**32 - 1  # scikit-learn's limit


@dataclass(frozen=True)
class Request:
    """What was asked of one part, `key` = `train` or `test`: `index` (explicit positions), else `size`, else neither."""

    key: str
    size: int | None
    index: Sequence[int] | None


@dataclass(frozen=True, eq=False)
class Pool:
    """Examples that can be drawn.

    `name` stands in messages; `positions` `[n]` ascend and count in a file of `n_file` examples; `labels` `[n]` keep the
    classes' shares (None for regression).
    """

    name: str
    positions: Positions
    labels: Positions | None
    n_file: int

    def __len__(self) -> int:
        return len(self.positions)

    def at(self, kept: np.ndarray) -> Pool:
        """The examples that `kept` picks out: a mask `[n]`, or ascending places in `positions`."""
        return Pool(self.name, self.positions[kept], None if self.labels is None else self.labels[kept], self.n_file)

    def without(self, positions: Positions) -> Pool:
        return self.at(~np.isin(self.positions, positions))


def split_one_file(pool: Pool, train: Request, test: Request, seed: int) -> tuple[Positions, Positions]:
    """(train, test) positions of a data set without an official test part; they never overlap.

    An explicit index is kept in its own order, drawn positions ascend. When one part alone has an index the other is drawn
    from what it leaves: all of it to train on, or the usual fifth of the pool (at most what is left) to test on.

    Raises `InfluxError` for too few examples, or an index that is empty, out of range, repeated or in both parts.
    """
    if train.index is not None and test.index is not None:
        parts = explicit(pool, train.key, train.index), explicit(pool, test.key, test.index)
        _refuse_overlap(*parts)
        return parts
    if train.index is not None:
        chosen = explicit(pool, train.key, train.index)
        left = pool.without(chosen)
        return chosen, _drawn(left, test, seed, default=min(_one_fifth(pool), len(left)))
    if test.index is not None:
        chosen = explicit(pool, test.key, test.index)
        return part_of(pool.without(chosen), train, seed), chosen
    if seed > LARGEST_SEED:
        raise InfluxError(f"dataset.split_seed={seed} is too large: it must be at most {LARGEST_SEED}.")
    held_out, rest = _divided(pool, _n_held_out(pool, train, test), seed)
    return part_of(rest, train, seed), part_of(held_out, test, seed)


def part_of(pool: Pool, request: Request, seed: int) -> Positions:
    """One part out of its own pool: the explicit index, a draw of `size`, or everything."""
    if request.index is not None:
        return explicit(pool, request.key, request.index)
    return _drawn(pool, request, seed, default=len(pool))


def explicit(pool: Pool, key: str, index: Sequence[int]) -> Positions:
    """`index` as an array, in its own order; `InfluxError` unless every item is a different position of `pool`."""
    knob = f"dataset.{key}_index"
    if not index:
        raise InfluxError(f"{knob} is empty: list at least one position, or set it to null.")
    outside = [position for position in index if not 0 <= position < pool.n_file]
    if outside:
        raise InfluxError(f"{knob} holds {outside[0]}, but {pool.name} has positions 0 to {pool.n_file - 1} only.")
    positions = np.asarray(index, dtype=np.int64)
    values, counts = np.unique(positions, return_counts=True)
    if (counts > 1).any():
        raise InfluxError(f"{knob} holds {values[counts > 1][0]} more than once: list each position once.")
    dropped = positions[~np.isin(positions, pool.positions)]
    if len(dropped):
        raise InfluxError(f"{knob} holds {dropped[0]}, whose class dataset.classes leaves out: drop the position or keep the class.")
    return positions


def _refuse_overlap(train: Positions, test: Positions) -> None:
    both = np.intersect1d(train, test)
    if len(both):
        raise InfluxError(
            f"dataset.train_index and dataset.test_index share {len(both)} position(s), the first {both[0]}: "
            "an example trains or tests, never both; drop it from one of them."
        )


def _one_fifth(pool: Pool) -> int:
    return -(-len(pool) // ONE_IN)


def _n_held_out(pool: Pool, train: Request, test: Request) -> int:
    """How many examples cannot train; see the rule at the top of this file."""
    if len(pool) < 2:
        raise InfluxError(f"{pool.name} has {len(pool)} example(s) to divide: at least 2 are needed, one to train on and one to test on.")
    n_train, n_test = train.size or 1, test.size or 1
    if n_train + n_test > len(pool):
        asked = " and ".join(f"dataset.{part.key}_size={part.size}" for part in (train, test) if part.size)
        raise InfluxError(
            f"{asked} is too much: {pool.name} has {len(pool)} examples to divide and each part needs at least one; ask for fewer."
        )
    return min(max(_one_fifth(pool), n_test), len(pool) - n_train)


def _drawn(pool: Pool, request: Request, seed: int, default: int) -> Positions:
    """`request.size` (or `default`) positions of `pool`, ascending."""
    size = default if request.size is None else request.size
    if size > len(pool):
        raise InfluxError(
            f"dataset.{request.key}_size={size} is too much: {pool.name} has {len(pool)} example(s) to draw from; ask for fewer."
        )
    if size == 0:
        raise InfluxError(f"{pool.name} has no example left for the {request.key} part: shorten the other part's index.")
    drawn, _ = _divided(pool, size, derive(seed, f"{request.key} part") % (LARGEST_SEED + 1))
    return drawn.positions


def _divided(pool: Pool, size: int, seed: int) -> tuple[Pool, Pool]:
    """(drawn, rest): a random draw of `size`, both parts ascending."""
    if size == len(pool):
        return pool, pool.at(np.arange(0))
    rest, drawn = train_test_split(
        np.arange(len(pool)),
        test_size=size,
        train_size=len(pool) - size,
        random_state=seed,
        stratify=pool.labels if _can_stratify(pool.labels, size) else None,
    )
    return pool.at(np.sort(drawn)), pool.at(np.sort(rest))


def _can_stratify(labels: Positions | None, size: int) -> bool:
    if labels is None:
        return False
    classes, counts = np.unique(labels, return_counts=True)
    return counts.min() >= 2 and min(size, len(labels) - size) >= len(classes)
