"""A content-addressed store: results under a key made of everything that determines them, safe against being killed at any moment.

One entry is one safetensors file, written beside its place and renamed into it, with its key, what it is for and a checksum of the whole
file in the header. A reader sees a whole entry or none. Nothing in it can run code. Long work is claimed before it is done, so that
processes that share a store do not do it twice:

    found = store.load(kind, key)
    if found is None:
        while (claim := store.claim(kind, key)) is None:
            store.wait(kind, key)
        with claim:
            found = store.load(kind, key)  # again: whoever had the claim before may have saved it
            if found is None:
                found = work()
                store.save(kind, key, found, "what it is for")
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout, lock_descriptor

from influx.errors import InfluxError, warn_accuracy

if TYPE_CHECKING:  # torch takes seconds to import, and listing a store does not need it
    from torch import Tensor

Key = Mapping[str, Any]

TEMPORARY = ".writing-"
STALE = 3600.0  # seconds after which a temporary or lock file that no process holds is swept away
POLL = 0.1  # seconds between two looks at a claim that is waited for
UNSEALED = b"0" * 64
CHECKSUM = re.compile(rb'"checksum":"([0-9a-f]{64})"')  # inside the key, a JSON text of its own, the quotes are escaped


def digest(key: Key) -> str:
    """SHA-256 of the key's canonical JSON."""
    return hashlib.sha256(_canonical(key).encode()).hexdigest()


def _canonical(key: Key) -> str:
    return json.dumps(key, sort_keys=True, default=str)


class Claim:
    """The right to do one entry's work, taken back by the system when the process dies. Any thread may release it; no child inherits it."""

    def __init__(self, lock: FileLock | None) -> None:
        self._lock = lock

    def release(self) -> None:
        """Let go; again is no error.

        The lock file goes too. Only its holder unlinks it, before letting go: nobody's lock is pulled away from under it. A process that
        opened the file just before gets a lock on a file without a name, which guards nothing; filelock notices and does not count it.
        Should a network file system hide it, two processes hold one claim. That is why work begins with another look into the store: the
        second finds the entry that the first has saved, or, at worst, computes it too and replaces it with the same.
        """
        lock, self._lock = self._lock, None
        if lock is not None and lock.is_locked:
            with suppress(OSError):
                os.unlink(lock.lock_file)
            lock.release()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@dataclass(frozen=True)
class Store:
    """`root` null keeps nothing: every look-up misses, every claim succeeds and every save is dropped."""

    root: Path | None

    def check(self) -> None:
        """Raise `InfluxError` when there can be no store at this place; sweep away what killed processes left.

        A folder that can only be read passes: what is in it can be used, and the first claim of what is not in it is refused.
        """
        if self.root is None:
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            if not self.root.is_dir():
                raise self._unwritable(error) from error
            return
        self.sweep()

    def sweep(self) -> None:
        """Remove temporary and lock files that nobody has held for an hour."""
        if self.root is None:
            return
        for pattern in (f"*/*/{TEMPORARY}*", "locks/*.lock"):
            for path in self.root.glob(pattern):
                _remove_abandoned(path)

    def path(self, kind: str, key: Key) -> Path | None:
        if self.root is None:
            return None
        name = digest(key)
        return self.root / kind / name[:2] / f"{name}.safetensors"

    def holds(self, kind: str, key: Key) -> bool:
        """Whether there is an entry, sound or not."""
        path = self.path(kind, key)
        return path is not None and os.path.exists(path)

    def load(self, kind: str, key: Key) -> dict[str, Tensor] | None:
        """The entry's tensors, or None when there is none.

        A damaged entry is reported, removed, and counts as none; one that cannot be read is reported, left there, and counts as none.
        """
        path = self.path(kind, key)
        if path is None:
            return None
        try:
            content = read(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            warn_accuracy(f"the stored {kind} {path} cannot be read ({error.strerror}); it is computed again.")
            return None
        if is_sound(content, path.stem):
            from safetensors.torch import load

            return load(content)
        with suppress(OSError):
            discard(path)
        outcome = "is damaged and cannot be removed; it is" if os.path.exists(path) else "is damaged; it is removed and"
        warn_accuracy(f"the stored {kind} {path} {outcome} computed again.")
        return None

    def save(self, kind: str, key: Key, tensors: Mapping[str, Tensor], about: str = "") -> None:
        """Write one entry, whole or not at all; `about` says in a few words what it is for.

        Raises:
            InfluxError: the folder cannot be written, or the disk is full; the store is then as it was.
        """
        path = self.path(kind, key)
        if path is None:
            return
        from safetensors.torch import save

        plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}  # none shares memory
        metadata = {"key": _canonical(key), "about": " ".join(about.split()), "checksum": UNSEALED.decode()}
        write_whole(path, _seal(save(plain, metadata)))

    def fetch(self, kind: str, key: Key, work: Callable[[], Mapping[str, Tensor]], about: str = "") -> tuple[Mapping[str, Tensor], bool]:
        """The entry's tensors, made by `work` and saved when there is none, and whether they were there. Of several processes that ask,
        one works and the others wait.

        Raises:
            InfluxError: the store cannot be written; before `work`, or after it when the disk is full.
        """
        while (found := self.load(kind, key)) is None:
            claim = self.claim(kind, key)
            if claim is None:
                self.wait(kind, key)
                continue
            with claim:
                found = self.load(kind, key)  # again: whoever had the claim before may have saved it
                if found is None:
                    made = work()
                    self.save(kind, key, made, about)
                    return made, False
        return found, True

    def claim(self, kind: str, key: Key) -> Claim | None:
        """The right to do this entry's work, or None while another process, or another claim of this one, has it.

        None now and then although nobody works: a process that waits, sweeps or removes holds the claim for an instant. So ask again
        after `wait`, and never take None to mean that the entry will be there.

        Raises:
            InfluxError: the store cannot be written, so that the work would be lost.
        """
        if self.root is None:
            return Claim(None)
        try:
            place = self._lock(kind, digest(key))
            place.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(place, blocking=False, thread_local=False)
            lock.acquire()
        except Timeout:
            return None
        except OSError as error:
            raise self._unwritable(error) from error
        return Claim(lock)

    def wait(self, kind: str, key: Key) -> None:
        """Return when nobody holds the claim. Never wait while holding one: two processes that wait for each other do so for ever."""
        while (claim := self.claim(kind, key)) is None:
            time.sleep(POLL)
        claim.release()

    def is_claimed(self, kind: str, name: str) -> bool:
        """Whether a living process works on the entry whose key has the digest `name`. Writes nothing, so that a full disk can be freed."""
        with suppress(FileNotFoundError), self._lock(kind, name).open("r+b") as file:
            return not lock_descriptor(file.fileno(), blocking=False)
        return False

    def _lock(self, kind: str, name: str) -> Path:
        assert self.root is not None
        return self.root / "locks" / f"{kind}-{name}.lock"

    def _unwritable(self, error: OSError) -> InfluxError:
        return InfluxError(f"store.dir={self.root} cannot be written ({error.strerror}): choose another place, or null to keep nothing.")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it, and rename it there. The temporary is locked, so that no sweep takes it for abandoned.

    Raises:
        InfluxError: the folder cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
        try:
            with os.fdopen(handle, "wb") as file:
                with suppress(OSError):  # a file system without locks
                    lock_descriptor(handle, blocking=False)
                file.write(content)
                file.flush()
                os.fsync(handle)
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
        except BaseException:  # Ctrl-C too
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InfluxError(
            f"cannot write {path} ({error.strerror}): choose another place with hydra.run.dir=... or store.dir=..., or free some space."
        ) from error
    _flush_folder(path.parent)


def read(path: Path) -> bytes:
    """A file's bytes; none for a folder in its place, which is a kind of damage."""
    try:
        return path.read_bytes()
    except IsADirectoryError:
        return b""


def header(content: bytes) -> dict[str, str]:
    """What an entry says about itself (`key`, `about`, `checksum`), from its first bytes; empty when that cannot be read."""
    try:
        said = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    except (ValueError, KeyError, TypeError):
        return {}
    return said if isinstance(said, dict) else {}


def is_sound(content: bytes, name: str) -> bool:
    """Whether an entry's bytes are those that were written, under the digest of its key."""
    place = CHECKSUM.search(content)
    if place is None or _checksum(content, place) != place[1]:
        return False
    return hashlib.sha256(header(content).get("key", "").encode()).hexdigest() == name


def discard(path: Path) -> None:
    """Remove an entry, or the folder that took its place."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _checksum(content: bytes, place: re.Match[bytes]) -> bytes:
    """SHA-256 of a whole file, with zeros where the checksum itself stands."""
    view = memoryview(content)
    total = hashlib.sha256(view[: place.start(1)])
    total.update(UNSEALED)
    total.update(view[place.end(1) :])
    return total.hexdigest().encode()


def _seal(content: bytes) -> bytes:
    place = CHECKSUM.search(content)
    assert place is not None
    return content[: place.start(1)] + _checksum(content, place) + content[place.end(1) :]


def _flush_folder(folder: Path) -> None:
    """Let the new name survive a power cut; a system that cannot do it loses one finished result at worst."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove_abandoned(path: Path) -> None:
    with suppress(OSError), path.open("r+b") as file:
        status = os.fstat(file.fileno())
        if time.time() - status.st_mtime < STALE or not lock_descriptor(file.fileno(), blocking=False):
            return
        if os.path.samestat(status, path.stat()):  # else the name has gone to another process's file since it was opened
            path.unlink()
