"""A figure as files: PNG always, PDF and SVG beside it where they are asked for.

The same figure gives the same bytes: no date, no random names. Text stays text in both (TrueType in PDF), so that a paper's editor can
find and change it. The file says what it shows, in words: PNG's Description, PDF's Subject, SVG's Description.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")

_wanted: ContextVar[tuple[str, ...]] = ContextVar("wanted", default=())


@contextmanager
def formats(more: bool | Sequence[str] | None) -> Iterator[None]:
    """Inside, figures are written in these formats beside PNG; true and null ask for no other."""
    token = _wanted.set(() if more is None or isinstance(more, bool) else tuple(more))
    try:
        yield
    finally:
        _wanted.reset(token)


def save(figure: Figure, path: str | Path) -> None:
    """Write the figure to `path`, a PNG, and beside it in the other formats that are wanted."""
    logging.getLogger("fontTools.subset").setLevel(logging.WARNING)  # or each PDF puts some sixty lines into the run's log
    said = in_words(figure)
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Description": said},
        "pdf": {"Subject": said, "CreationDate": None, "ModDate": None},
        "svg": {"Description": said, "Date": None},
    }
    for kind in dict.fromkeys(("png", *_wanted.get())):
        figure.savefig(Path(path).with_suffix(f".{kind}"), format=kind, metadata=metadata[kind])


def in_words(figure: Figure) -> str:
    """What the figure says in its titles and on its axes, in one line."""
    parts = [figure.get_suptitle()]
    for ax in figure.axes:
        if ax.axison:
            between = " against " if ax.get_ylabel() and ax.get_xlabel() else ""
            parts += [ax.get_title(loc="left") or ax.get_title(), f"{ax.get_ylabel()}{between}{ax.get_xlabel()}"]
    return "; ".join(" ".join(part.split()) for part in dict.fromkeys(parts) if part.strip())
