"""Image files that torchvision knows how to fetch and read: where they are looked for, and what is said when they are not right.

Files that are already there are read as they are; checksums are torchvision's business when it downloads.
"""

from __future__ import annotations

import gzip
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from influx.datasets.base import Source
from influx.errors import InfluxError
from influx.vision import torchvision

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
NOT_IDX = (AssertionError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError)  # what torchvision's idx readers raise
OFFLINE = "dataset=mnist5k and dataset=digits work offline"
WHITE = 255.0


def read_idx_set(name: str, folder: str, root: str, download: bool, class_names: tuple[str, ...]) -> Source:
    """A set of the MNIST family: four idx files in `root/folder/raw`, where torchvision's class `folder` keeps them.

    Files that are there only as `.gz`, in that place or in `root` itself, are unpacked first; in a temporary folder when
    that place cannot be written to. Images become `[n, 1, height, width]` in [0, 1].

    Raises `InfluxError` when a file is missing, cannot be downloaded, or is not a whole idx file.
    """
    home = Path(root).expanduser()
    with _unpacked(home, folder) as found:
        if len(found) < len(IDX_FILES) and download:
            fetch(name, lambda: getattr(torchvision().datasets, folder)(home, download=True))
            found = {file: home / folder / "raw" / file for file in IDX_FILES}
        absent = [file for file in IDX_FILES if file not in found]
        if absent:
            raise missing(name, home, absent)
        inputs, targets = _images_and_labels(*(found[file] for file in IDX_FILES[:2]))
        test_inputs, test_targets = _images_and_labels(*(found[file] for file in IDX_FILES[2:]))
    return Source(inputs, targets, "classification", class_names, test_inputs=test_inputs, test_targets=test_targets)


def fetch(name: str, download: Callable[[], Any]) -> None:
    """Call `download`; `InfluxError` when it fails, whatever the network, the server or the disk did."""
    try:
        download()
    except (HTTPException, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InfluxError(
            f"{name} could not be downloaded ({reason}): check the network and that dataset.root can be written to, or put the "
            f"files there by hand; {OFFLINE}."
        ) from error


def missing(name: str, folder: Path, files: list[str]) -> InfluxError:
    return InfluxError(
        f"{name} is not in {folder.absolute()} ({', '.join(files)} not found): set dataset.download=true to fetch it, or dataset.root "
        f"to the folder that has it; {OFFLINE}."
    )


def corrupt(path: Path, reason: str) -> InfluxError:
    return InfluxError(f"{path.absolute()} is corrupt ({reason}): delete it and run again with dataset.download=true.")


@contextmanager
def _unpacked(root: Path, folder: str) -> Iterator[dict[str, Path]]:
    """The idx files that can be read now, by name; the paths hold until the context ends."""
    raw = root / folder / "raw"
    writable = os.access(raw if raw.is_dir() else root, os.W_OK)
    with TemporaryDirectory() as scratch:
        found = {}
        for file in IDX_FILES:
            packed = [place / f"{file}.gz" for place in (raw, root) if (place / f"{file}.gz").is_file()]
            if (raw / file).is_file():
                found[file] = raw / file
            elif packed:
                found[file] = _unpack(packed[0], raw if writable else Path(scratch), file)
        yield found


def _unpack(packed: Path, folder: Path, file: str) -> Path:
    """`folder/file`, whole or not at all: an interruption leaves no half-written file under that name."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{file}.partial"
    try:
        with gzip.open(packed) as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        partial.unlink(missing_ok=True)
        raise corrupt(packed, str(error)) from error
    return partial.replace(folder / file)


def _images_and_labels(images: Path, labels: Path) -> tuple[Float[np.ndarray, "n 1 height width"], Int[np.ndarray, " n"]]:
    readers = torchvision().datasets.mnist
    pixels, classes = _read_idx(readers.read_image_file, images), _read_idx(readers.read_label_file, labels)
    if len(pixels) != len(classes):
        raise corrupt(labels, f"it has {len(classes)} labels for the {len(pixels)} images in {images.name}")
    return pixels[:, None] / WHITE, classes


def _read_idx(reader: Callable[[str], Any], path: Path) -> np.ndarray:
    try:
        return reader(str(path)).numpy()
    except NOT_IDX as error:
        raise corrupt(path, "wrong magic number or length, not a whole idx file") from error
