"""What a finished run depends on beside its settings, so that it is taken for the same run only when it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from influx.instantiate import foreign_sources
from influx.store import digest

LISTED = 10_000  # files of a folder that are looked at
READ = 2**20  # bytes: files up to this size are known by what they hold, larger ones by size and time
PLACES = ("store", "jobs_dir")  # where results go: no run depends on them


def surroundings(config: Mapping[str, Any]) -> str:
    """SHA-256 of the user's own classes that the configuration names, and of every file or folder that it names."""
    files = {path: _stamps(Path(path)) for path in sorted(set(_paths({k: v for k, v in config.items() if k not in PLACES})))}
    return digest({"sources": foreign_sources(config), "files": files})


def _paths(value: Any) -> Iterator[str]:
    """Texts that name something on this disk."""
    if isinstance(value, Mapping):
        for inside in value.values():
            yield from _paths(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _paths(inside)
    elif isinstance(value, str) and _exists(value):
        yield value


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # too long, or with a zero byte: no path
        return False


def _stamps(place: Path) -> list[tuple[str, str]]:
    files = [place] if place.is_file() else [file for file in islice(place.rglob("*"), LISTED) if file.is_file()]
    return sorted((str(file), _stamp(file)) for file in files)


def _stamp(file: Path) -> str:
    known = file.stat()
    if known.st_size > READ:
        return f"{known.st_size} {known.st_mtime_ns}"
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:  # not ours to read
        return f"{known.st_size} {known.st_mtime_ns}"
