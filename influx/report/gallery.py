"""Top influences as a picture: a line for each test example, with the training examples that help and harm it most (or, of measurements
that are neither good nor bad, lower and raise it most).

Everything is placed in inches on one axes that covers the figure, y pointing down: many small pictures cost little that way, and
nothing depends on what a layout engine makes of them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from influx.report.plots import BLUE, GREY, VERMILLION, style
from influx.report.saving import save
from influx.report.tables import significant

ROWS = 20  # test examples drawn; all of them are in the CSV beside the picture
LONGEST = 34  # characters of a line, beyond which it is cut with an ellipsis
TITLE, SCORE, LINE, PAD, GAP = 0.26, 0.2, 0.115, 0.06, 0.3  # inches
PICTURE, NARROWEST = 0.9, 1.0  # inches: an image's side, an exhibit's least width
CHARACTER = 0.0545  # inches: the width of a monospaced character of 6.5 points


@dataclass(frozen=True)
class Exhibit:
    """An example to show: its title, and a picture in [0, 1] of one or three channels, or lines `feature = value`, or lines of text."""

    title: str
    image: Float[np.ndarray, "channels height width"] | None = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class GalleryRow:
    """A test example and, most influential first, training examples with their influence on it (unit: the measurement's)."""

    test: Exhibit
    helpful: list[tuple[Exhibit, float]]
    harmful: list[tuple[Exhibit, float]]

    @property
    def exhibits(self) -> list[Exhibit]:
        return [self.test, *(exhibit for exhibit, _ in (*self.helpful, *self.harmful))]


def save_gallery(
    rows: Sequence[GalleryRow], path: str | Path, *, unit: str = "", kinds: tuple[str, str] = ("most helpful", "most harmful")
) -> None:
    """Draw at least one row: test example | most helpful | most harmful, each with its influence (3 significant digits) below it.

    When all exhibits have the same features, their names stand once, at the left, and the exhibits show values only. `unit` is the
    measurement's; `kinds` are the words above the two sides.
    """
    shown = [exhibit for row in rows[:ROWS] for exhibit in row.exhibits]
    names = _shared_names(shown)
    plan = _Plan.of(rows[:ROWS], shown, names)
    with style():
        figure = Figure(figsize=(plan.width, plan.height))
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_axis_off()
        _draw_headers(ax, plan, kinds)
        for number, row in enumerate(rows[:ROWS]):
            _draw_row(ax, plan, row, names, top=plan.top(number))
        notes = [f"below each: its influence ({unit})" if unit else "below each: its influence"]
        if len(rows) > ROWS:
            notes.append(f"the first {ROWS} of {len(rows)} test examples")
        if kinds[0].startswith("lowering"):
            notes[0] += "; lowering: without it, what is measured would be higher"
        ax.text(plan.test, plan.height - PAD, "\n".join(notes), fontsize=7, color=GREY, va="bottom")
        ax.set_xlim(0, plan.width)
        ax.set_ylim(plan.height, 0)
        save(figure, path)


@dataclass(frozen=True)
class _Plan:
    """Where things are, in inches from the top left corner."""

    names: float  # width of the gutter that holds the features' names
    cell: float  # width of an exhibit
    body: float  # height of an exhibit without title and influence
    helpful: int  # most exhibits a row has on each side
    harmful: int
    rows: int

    @classmethod
    def of(cls, rows: Sequence[GalleryRow], shown: Sequence[Exhibit], names: tuple[str, ...]) -> _Plan:
        lines = [line for exhibit in shown for line in _body_lines(exhibit, names)]
        return cls(
            names=CHARACTER * _longest(names) + PAD if names else 0.0,
            cell=max(NARROWEST, CHARACTER * _longest(lines) + 2 * PAD),
            body=max(PICTURE if exhibit.image is not None else LINE * len(exhibit.lines) + 2 * PAD for exhibit in shown),
            helpful=max(len(row.helpful) for row in rows),
            harmful=max(len(row.harmful) for row in rows),
            rows=len(rows),
        )

    @property
    def test(self) -> float:
        return PAD * 2 + self.names

    def helpful_at(self, number: int) -> float:
        return self.test + self.cell + GAP + number * (self.cell + PAD * 2)

    def harmful_at(self, number: int) -> float:
        return self.helpful_at(self.helpful) + GAP - PAD * 2 + number * (self.cell + PAD * 2)

    def top(self, row: int) -> float:
        return 0.46 + row * (TITLE + self.body + SCORE + PAD * 2)

    @property
    def width(self) -> float:
        return self.harmful_at(self.harmful)

    @property
    def height(self) -> float:
        return self.top(self.rows) + 0.25


def _draw_headers(ax: Axes, plan: _Plan, kinds: tuple[str, str]) -> None:
    ax.text(plan.test, 0.2, "test example", weight="bold", va="center")
    sides = ((kinds[0], plan.helpful_at, plan.helpful, BLUE), (kinds[1], plan.harmful_at, plan.harmful, VERMILLION))
    for words, at, count, colour in sides:
        if count:
            ax.text(at(0), 0.2, words, weight="bold", color=colour, va="center")
            ax.plot([at(0), at(count) - PAD * 2], [0.36, 0.36], color=colour, linewidth=1.5)
    ax.plot([plan.test, plan.test + plan.cell], [0.36, 0.36], color="black", linewidth=1.5)


def _draw_row(ax: Axes, plan: _Plan, row: GalleryRow, names: tuple[str, ...], top: float) -> None:
    for number, name in enumerate(names):
        y = top + TITLE + PAD + number * LINE
        ax.text(plan.test - PAD, y, _cut(name), fontsize=6.5, family="monospace", color=GREY, ha="right", va="top")
    _draw_exhibit(ax, plan, row.test, names, (plan.test, top), "black")
    for side, at, colour in ((row.helpful, plan.helpful_at, BLUE), (row.harmful, plan.harmful_at, VERMILLION)):
        for number, (exhibit, influence) in enumerate(side):
            corner = at(number), top
            _draw_exhibit(ax, plan, exhibit, names, corner, colour)
            below = corner[0] + plan.cell / 2, top + TITLE + plan.body + 0.04
            ax.text(*below, f"{'+' * (influence > 0)}{significant(influence)}", fontsize=7.5, color=colour, ha="center", va="top")


def _draw_exhibit(ax: Axes, plan: _Plan, exhibit: Exhibit, names: tuple[str, ...], corner: tuple[float, float], colour: str) -> None:
    left, top = corner
    title = textwrap.wrap(exhibit.title, int(plan.cell / 0.06), max_lines=2, placeholder="…")
    ax.text(left + plan.cell / 2, top + TITLE - 0.03, "\n".join(title), fontsize=6.5, ha="center", va="bottom", linespacing=1.0)
    top += TITLE
    if exhibit.image is not None:
        left += (plan.cell - PICTURE) / 2
        picture = np.moveaxis(np.clip(exhibit.image, 0, 1), 0, -1)
        extent = (left, left + PICTURE, top + PICTURE, top)
        ax.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1, extent=extent, aspect="auto")
        ax.add_patch(Rectangle((left, top), PICTURE, PICTURE, fill=False, edgecolor=colour, linewidth=1.2))
        return
    ax.add_patch(Rectangle((left, top), plan.cell, plan.body, facecolor="#F7F7F7", edgecolor=colour, linewidth=0.8))
    for number, line in enumerate(_body_lines(exhibit, names)):
        ax.text(left + PAD, top + PAD + number * LINE, line, fontsize=6.5, family="monospace", va="top")


def _shared_names(exhibits: Sequence[Exhibit]) -> tuple[str, ...]:
    """The features' names when every exhibit has the same ones in the same order, otherwise none."""
    names = {tuple(line.partition(" = ")[0] for line in exhibit.lines) for exhibit in exhibits}
    named = all(" = " in line for exhibit in exhibits for line in exhibit.lines)
    return names.pop() if named and len(names) == 1 else ()


def _body_lines(exhibit: Exhibit, names: tuple[str, ...]) -> list[str]:
    return [_cut(line.partition(" = ")[2] if names else line) for line in exhibit.lines]


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _longest(lines: Iterable[str]) -> int:
    return max((len(_cut(line)) for line in lines), default=0)
