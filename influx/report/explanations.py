"""Pictures of why an example is in its cluster: many small images on one page, or points in the plane coloured by their influence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from influx.report.gallery import Exhibit, GalleryRow
from influx.report.plots import BLUE, GREY, VERMILLION, new_figure, say_nothing, style
from influx.report.saving import save

ACROSS = 3  # test examples side by side
LARGE, SMALL, PAD, TITLE, TOP = 0.62, 0.44, 0.05, 0.13, 0.5  # inches
NARROWEST = 6.6  # inches that the heading takes
CHARACTER, SHORT = 0.037, 12  # inches of a small title's character; characters that stand above a small image in one line
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")


@dataclass(frozen=True)
class PlanePanel:
    """A test point, and the training points with their clusters and their influences on it."""

    title: str
    points: Float[np.ndarray, "n 2"]
    clusters: Int[np.ndarray, " n"]
    influence: Float[np.ndarray, " n"]
    test: Float[np.ndarray, " 2"]


def save_grid(rows: Sequence[GalleryRow], path: str | Path, *, says: str) -> None:
    """Each test image (large), then its most helpful training images (blue frames) and its most harmful ones (red frames), titled "label in
    cluster"; several to a line. `says` is what blue and red mean."""
    plan = _Plan.of(rows)
    across = min(ACROSS, len(rows))
    with style():
        figure = Figure(figsize=(max(NARROWEST, across * plan.wide + 2 * PAD), TOP + math.ceil(len(rows) / ACROSS) * plan.high))
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_axis_off()
        ax.set_xlim(0, figure.get_figwidth())
        ax.set_ylim(figure.get_figheight(), 0)
        ax.text(2 * PAD, 0.17, "Test examples, label in cluster, and who moves them", weight="bold", va="center")
        ax.text(2 * PAD, 0.36, says, fontsize=8, color=GREY, va="center")
        for number, row in enumerate(rows):
            _draw_row(ax, plan, row, 2 * PAD + (number % ACROSS) * plan.wide, TOP + (number // ACROSS) * plan.high)
        save(figure, path)


@dataclass(frozen=True)
class _Plan:
    """Sizes in inches: of a small image's cell, of the titles, of a test example with its training examples. Long titles take two lines."""

    cell: float
    title: float
    wide: float
    high: float
    lines: int

    @classmethod
    def of(cls, rows: Sequence[GalleryRow]) -> _Plan:
        titles = [shown.title for row in rows for shown in row.exhibits]
        lines = 1 if max(map(len, titles)) <= SHORT else 2
        longest = max(len(line) for title in titles for line in _broken(title, lines).split("\n"))
        cell, title = max(SMALL, CHARACTER * longest), TITLE * lines
        each = max(len(row.helpful) + len(row.harmful) for row in rows)
        wide = max(LARGE, cell) + each * (cell + PAD) + 5 * PAD
        return cls(cell, title, wide, LARGE + title + 2 * PAD, lines)


def _broken(title: str, lines: int) -> str:
    return title if lines == 1 else title.replace(" in ", "\nin ", 1)


def _draw_row(ax: Axes, plan: _Plan, row: GalleryRow, left: float, top: float) -> None:
    first = max(LARGE, plan.cell)
    _draw_image(ax, plan, row.test, left + (first - LARGE) / 2, top + plan.title, LARGE, "black", 7.0 if plan.lines == 1 else 5.0)
    left += first + 2 * PAD
    below = top + plan.title + LARGE - SMALL
    for side, colour in ((row.helpful, BLUE), (row.harmful, VERMILLION)):
        for shown, _ in side:
            _draw_image(ax, plan, shown, left + (plan.cell - SMALL) / 2, below, SMALL, colour, 5.0)
            left += plan.cell + PAD
        left += PAD


def _draw_image(ax: Axes, plan: _Plan, shown: Exhibit, left: float, top: float, side: float, colour: str, size: float) -> None:
    assert shown.image is not None
    picture = np.moveaxis(np.clip(shown.image, 0, 1), 0, -1)
    extent = (left, left + side, top + side, top)
    ax.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1, extent=extent, aspect="auto")
    ax.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=colour, linewidth=1.0))
    words = _broken(shown.title, plan.lines)
    ax.text(left + side / 2, top - 0.02, words, fontsize=size, ha="center", va="bottom", linespacing=1.0)


def save_planes(panels: Sequence[PlanePanel], path: str | Path, *, says: str, names: Sequence[str]) -> None:
    """A panel a test point (star): training points coloured by their influence on it, one marker a cluster; each with its own scale. `says`
    is what blue and red mean."""
    across = min(3, len(panels))
    with style():
        figure = new_figure(max(NARROWEST, 3.6 * across), 3.1 * math.ceil(len(panels) / across) + 0.3)
        axes = figure.subplots(math.ceil(len(panels) / across), across, sharex=True, sharey=True, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        for ax, panel in zip(axes.flat, panels, strict=False):
            draw_plane(panel, ax)
        for ax in axes[-1]:
            ax.set_xlabel(names[0])
        for ax in axes[:, 0]:
            ax.set_ylabel(names[1])
        said = f"Training points, one marker a cluster; test point *, titled label in cluster\n{says}"
        figure.suptitle(said, x=0.01, ha="left", fontsize=8, fontweight="normal")
        save(figure, path)


def draw_plane(panel: PlanePanel, ax: Axes) -> None:
    """Training points coloured by their influence on the test point, a star; a marker a cluster; white is zero."""
    ax.set_title(panel.title, fontsize=9)
    ax.plot(*panel.test, marker="*", markersize=13, color="black", markeredgecolor="white", zorder=3)
    known = np.flatnonzero(np.isfinite(panel.influence) & np.isfinite(panel.points).all(1))
    if not len(known):
        say_nothing(ax, "no influences")
        return
    largest = float(np.abs(panel.influence[known]).max()) or 1.0
    order = known[np.argsort(np.abs(panel.influence[known]))]  # the strongest on top
    for cluster in np.unique(panel.clusters[known]):
        own = order[panel.clusters[order] == cluster]
        x, y = panel.points[own].T
        marker = MARKERS[cluster % len(MARKERS)]
        drawn = ax.scatter(
            x, y, s=22.0, c=panel.influence[own], marker=marker, cmap="RdBu", vmin=-largest, vmax=largest, edgecolors=GREY, linewidths=0.4
        )
    ax.figure.colorbar(drawn, ax=ax, shrink=0.8)
