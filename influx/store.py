"""A content-addressed store: results under a key made of everything that determines them, safe against being killed at any moment.

One entry is one safetensors file, written beside its place and renamed into it, with its key and a checksum in the header. A reader sees
a whole entry or none. Nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from influx.errors import InfluxError, warn_accuracy

Key = Mapping[str, Any]


def digest(key: Key) -> str:
    """SHA-256 of the key's canonical JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Store:
    """`root` null keeps nothing: every look-up misses and every save is dropped."""

    root: Path | None

    def check(self) -> None:
        """Raise `InfluxError` before any work when nothing could be saved after it."""
        if self.root is None:
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise InfluxError(
                f"store.dir={self.root} cannot be written ({error.strerror}): choose another place, or null to keep nothing."
            ) from error

    def path(self, kind: str, key: Key) -> Path | None:
        if self.root is None:
            return None
        name = digest(key)
        return self.root / kind / name[:2] / f"{name}.safetensors"

    def holds(self, kind: str, key: Key) -> bool:
        """Whether there is an entry, sound or not."""
        path = self.path(kind, key)
        return path is not None and path.exists()

    def load(self, kind: str, key: Key) -> dict[str, Tensor] | None:
        """The entry's tensors, or None when there is none. A damaged entry is reported, removed, and counts as none."""
        path = self.path(kind, key)
        if path is None or not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as entry:
                tensors = {name: entry.get_tensor(name) for name in entry.keys()}  # noqa: SIM118 - not a dictionary
                sound = (entry.metadata() or {}).get("checksum") == _checksum(tensors)
        except (SafetensorError, OSError):
            sound = False
        if sound:
            return tensors
        warn_accuracy(f"the stored {kind} {path} is damaged; it is removed and computed again.")
        path.unlink(missing_ok=True)
        return None

    def save(self, kind: str, key: Key, tensors: Mapping[str, Tensor]) -> None:
        """Write one entry, whole or not at all.

        Raises:
            InfluxError: the folder cannot be written, or the disk is full; the store is then as it was.
        """
        path = self.path(kind, key)
        if path is None:
            return
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        header = {"checksum": _checksum(tensors), "key": json.dumps(key, sort_keys=True, default=str)}
        write_whole(path, save(tensors, metadata=header))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it, and rename it there.

    Raises:
        InfluxError: the folder cannot be written or the disk is full.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise InfluxError(
            f"cannot write {path} ({error.strerror}): choose another place with hydra.run.dir=... or store.dir=..., or free some space."
        ) from error


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].contiguous().numpy()
        total.update(f"{name}{array.dtype}{array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()
