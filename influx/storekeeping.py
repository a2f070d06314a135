"""`influx store`: list, check and remove what is stored, without importing torch."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from influx.errors import InfluxError, nearest
from influx.plain_settings import settings
from influx.rule_kinds import FLAG, TEXT, Rule
from influx.store import Store, discard, header, is_sound, read

DEFAULT = "outputs/store"  # as in conf/base.yaml
NEWEST = 50  # entries shown unless all are asked for
UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}

USAGE = """influx store: list, check and remove stored results

usage: influx store [remove|verify] [key=value ...]

actions
  (none)   list what is there, newest first
  remove   remove the entries that the filters choose; what a running process works on is left alone
  verify   check every checksum, and name what is damaged; removes nothing

filters, joined by "and"
  id=3fa9            the id begins with 3fa9
  kind=retrained     of this kind
  older_than=7d      saved longer ago (m, h, d, w)
  about=digits       these letters are in what it is for

settings
  store.dir=PATH     the store (outputs/store)
  all=true           show all entries, not only the newest 50
  dry_run=true       with remove: show what would go
  everything=true    with remove: all entries
"""


@dataclass(frozen=True)
class Entry:
    """One file of the store."""

    path: Path
    kind: str
    size: int
    saved: float  # seconds since the epoch

    @property
    def id(self) -> str:
        return self.path.stem[:10]

    @cached_property
    def about(self) -> str:
        """What it is for, as its header says."""
        try:
            with self.path.open("rb") as file:
                length = file.read(8)
                return header(length + file.read(min(int.from_bytes(length, "little"), self.size))).get("about", "")
        except OSError:
            return ""


def entries(root: Path) -> list[Entry]:
    """All entries, newest first."""
    found = []
    for path in root.glob("*/??/*.safetensors"):
        try:
            status = path.stat()
        except OSError:  # removed since it was listed
            continue
        found.append(Entry(path, path.parts[-3], status.st_size, status.st_mtime))
    return sorted(found, key=lambda entry: (-entry.saved, entry.id))


def _age(value: Any) -> float | None:
    """Seconds of `7d`; None when it is no age."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", str(value))
    return float(match[1]) * UNITS[match[2]] if match else None


RULES: dict[str, Rule] = {
    "store.dir": Rule("the folder of a store", lambda v: v not in ("", "null")),
    "id": Rule("the first digits of an id, of 0-9 and a-f", lambda v: re.fullmatch("[0-9a-f]{1,64}", v) is not None),
    "kind": TEXT,
    "older_than": Rule("a number with a unit of m, h, d or w, such as 7d", lambda v: _age(v) is not None),
    "about": TEXT,
    "all": FLAG,
    "everything": FLAG,
    "dry_run": FLAG,
}
FILTERS = ("id", "kind", "older_than", "about")


def command(words: Sequence[str]) -> int:
    """`influx store WORDS`; the exit status.

    Raises:
        InfluxError: a word, key or value that is not possible.
    """
    if {"-h", "--help"} & {*words}:
        print(USAGE, end="")
        return 0
    actions = [word for word in words if "=" not in word] or ["list"]
    for word in actions:
        if word not in ACTIONS:
            raise InfluxError(f"influx store has no '{word}'; it has {', '.join(ACTIONS)}.{nearest(word, ACTIONS)}")
    if len(actions) > 1:
        raise InfluxError(f"one action at a time: {' or '.join(actions)}.")
    run, own = ACTIONS[actions[0]]
    chosen = settings([word for word in words if "=" in word], RULES, ("store.dir", *FILTERS, *own))
    return run(Path(chosen.get("store.dir", DEFAULT)), chosen)


def _look(root: Path, settings: Mapping[str, Any]) -> tuple[list[Entry], list[Entry]]:
    """All entries, and those that the filters choose.

    Raises:
        InfluxError: the place is no folder, or a filter names what is not there.
    """
    if root.exists() and not (root.is_dir() and os.access(root, os.R_OK | os.X_OK)):
        raise InfluxError(f"store.dir={root} is not a folder that can be read.")
    every = entries(root)
    kinds = sorted({entry.kind for entry in every})
    kind, id_ = settings.get("kind"), settings.get("id", "")
    if every and kind is not None and kind not in kinds:
        raise InfluxError(f"kind={kind} is not in the store {root}; there is {', '.join(kinds)}.{nearest(kind, kinds)}")
    if every and not any(entry.path.stem.startswith(id_) for entry in every):
        raise InfluxError(f"id={id_} is not in the store {root}: influx store lists the ids.")
    return every, [entry for entry in every if _fits(entry, settings)]


def _fits(entry: Entry, settings: Mapping[str, Any]) -> bool:
    age = _age(settings["older_than"]) if "older_than" in settings else None
    return (
        entry.path.stem.startswith(settings.get("id", ""))
        and settings.get("kind", entry.kind) == entry.kind
        and (age is None or time.time() - entry.saved > age)
        and ("about" not in settings or settings["about"].casefold() in entry.about.casefold())
    )


def _nothing(root: Path, every: Sequence[Entry]) -> str:
    return f"the store {root} is empty" if not every else f"no entry of the store {root} is chosen, of {_count(every)}"


def _list(root: Path, settings: Mapping[str, Any]) -> int:
    every, chosen = _look(root, settings)
    if not chosen:
        print(_nothing(root, every))
        return 0
    _show(chosen, settings.get("all", False))
    share = "" if len(chosen) == len(every) else f" of {_count(every)}"
    print(f"{_count(chosen)}{share} in {root}")
    return 0


def _verify(root: Path, settings: Mapping[str, Any]) -> int:
    every, chosen = _look(root, settings)
    if not chosen:
        print(_nothing(root, every))
        return 0
    wrong = [(entry, fault) for entry in chosen if (fault := _fault(entry))]
    for entry, fault in wrong:
        print(f"{entry.id} {entry.kind} {fault}: {entry.path}")
    print(f"{_count(chosen)} checked, {f'{len(wrong)} damaged' if wrong else 'all sound'}")
    if wrong:
        print("a damaged entry is computed again when it is needed; influx store remove id=... removes it now")
    return 1 if wrong else 0


def _fault(entry: Entry) -> str:
    """What is wrong with an entry; empty when it is sound or has just been removed."""
    try:
        return "" if is_sound(read(entry.path), entry.path.stem) else "is damaged"
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _remove(root: Path, settings: Mapping[str, Any]) -> int:
    if not any(key in settings for key in FILTERS) and not settings.get("everything"):
        raise InfluxError("say what to remove: id=..., kind=..., older_than=7d or about=..., or everything=true for all of the store.")
    every, chosen = _look(root, settings)
    if not chosen:
        print(_nothing(root, every))
        return 0
    if settings.get("dry_run"):
        _show(chosen, settings.get("all", False))
        print(f"would remove {_count(chosen)} from {root}; nothing is removed")
        return 0
    store = Store(root)
    removed = [entry for entry in chosen if _remove_one(store, entry)]
    store.sweep()
    print(f"removed {_count(removed)} from {root}")
    if len(removed) < len(chosen):
        print(f"left alone {len(chosen) - len(removed)} that a running process works on")
    return 0


def _remove_one(store: Store, entry: Entry) -> bool:
    """Whether it was removed. A process that claims it from now on looks for it first, and then does its work or has it already."""
    try:
        if store.is_claimed(entry.kind, entry.path.stem):
            return False
        discard(entry.path)
        return True
    except OSError as error:
        raise InfluxError(f"cannot remove {entry.path} ({error.strerror}).") from error


ACTIONS: dict[str, tuple[Callable[[Path, Mapping[str, Any]], int], tuple[str, ...]]] = {
    "list": (_list, ("all",)),
    "remove": (_remove, ("everything", "dry_run", "all")),
    "verify": (_verify, ()),
}
WORDS = (*ACTIONS, *(f"{key}=" for key in RULES))  # what the shell can complete


HEADS = ("id", "kind", "size", "age", "what for")


def _show(chosen: Sequence[Entry], whole: bool) -> None:
    """A table on a terminal, aligned lines elsewhere; the newest, or the whole of it."""
    shown = chosen if whole else chosen[:NEWEST]
    rows = [(entry.id, entry.kind, _size(entry.size), _since(entry.saved), entry.about or "-") for entry in shown]
    (_table if sys.stdout.isatty() else _lines)(rows)
    if len(shown) < len(chosen):
        print(f"... and {len(chosen) - len(shown)} older; all=true shows them too")


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    table = Table()
    for head in HEADS:
        table.add_column(head, justify="right" if head in ("size", "age") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False, emoji=False).print(table)


def _lines(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in (HEADS, *rows)) for column in range(4)]
    for number, kind, size, age, about in (HEADS, *rows):
        print(f"{number:<{widths[0]}}  {kind:<{widths[1]}}  {size:>{widths[2]}}  {age:>{widths[3]}}  {about}")


def _count(chosen: Sequence[Entry]) -> str:
    total = _size(sum(entry.size for entry in chosen))
    return f"{len(chosen)} {'entry' if len(chosen) == 1 else 'entries'} ({total})"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def _since(saved: float) -> str:
    """How long ago, in the units of `older_than`."""
    age = max(0.0, time.time() - saved)
    unit = max((unit for unit in UNITS if age >= UNITS[unit]), key=lambda unit: UNITS[unit], default="")
    return f"{age // UNITS[unit]:.0f}{unit}" if unit else "<1m"
