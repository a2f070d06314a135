"""Progress of long loops: a bar with rate and time left on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

SHOW_AFTER = 2.0  # seconds of work before anything is shown
LINE_EVERY = 15.0  # seconds between two lines when standard error is not a terminal


_shown: ContextVar[bool] = ContextVar("shown", default=False)


def progress(items: Sequence[T], label: str) -> Iterator[T]:
    """Yield `items`; once `SHOW_AFTER` seconds have gone by, show on standard error how far the loop is.

    A loop of several items silences the loops inside it.
    """
    if _shown.get():
        yield from items
        return
    token = _shown.set(len(items) > 1)
    try:
        yield from _bar(items, label) if sys.stderr.isatty() else _lines(items, label)
    finally:
        _shown.reset(token)


@contextmanager
def silence() -> Iterator[None]:
    """Inside, no loop shows anything."""
    token = _shown.set(True)
    try:
        yield
    finally:
        _shown.reset(token)


def _bar(items: Sequence[T], label: str) -> Iterator[T]:
    begun = time.monotonic()
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}/s"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=len(items), visible=False, rate="")
        for done, item in enumerate(items):
            seconds = time.monotonic() - begun
            if seconds >= SHOW_AFTER:
                bar.update(task, completed=done, visible=True, rate=f"{done / seconds:.3g}")
            yield item


def _lines(items: Sequence[T], label: str) -> Iterator[T]:
    begun = time.monotonic()
    due = begun + SHOW_AFTER
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now >= due:
            rate = done / (now - begun)
            print(f"{label}: {done}/{len(items)}, {rate:.3g}/s, {(len(items) - done) / rate:.0f} s left", file=sys.stderr, flush=True)
            due = now + LINE_EVERY
        yield item
