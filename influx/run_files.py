"""Files of finished runs read back: what is missing or damaged is one line that says so. Nothing that is read can run code."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from influx.errors import InfluxError

BROKEN: tuple[type[Exception], ...] = (ValueError, OSError, EOFError, KeyError)  # JSON's, pandas' and Unicode's are `ValueError`s


@contextmanager
def _sound(file: Path, *more: type[Exception]) -> Iterator[None]:
    """What a reader raises as one line about its file."""
    try:
        yield
    except FileNotFoundError as error:
        raise InfluxError(f"{file} is missing: this is not a whole run folder.") from error
    except (*BROKEN, *more) as error:
        said = (str(error).strip() or "no content").splitlines()[0]
        raise InfluxError(f"{file} is damaged ({said}): copy the folder again, or repeat the run.") from error


def mapping(file: Path) -> dict[str, Any]:
    """The keys of a JSON or YAML file."""
    with _sound(file, yaml.YAMLError):
        parse: Callable[[str], Any] = json.loads if file.suffix == ".json" else yaml.safe_load
        found = parse(file.read_text())
        if not isinstance(found, dict):
            raise ValueError("it holds no keys")
        return found


def words(file: Path) -> list[str]:
    """The lines of a YAML list, such as `.hydra/overrides.yaml`."""
    with _sound(file, yaml.YAMLError):
        return [str(word) for word in yaml.safe_load(file.read_text()) or []]


def table(file: Path) -> pd.DataFrame:
    with _sound(file):
        return pd.read_csv(file)


def arrays(file: Path) -> dict[str, np.ndarray]:
    with _sound(file, zipfile.BadZipFile), np.load(file, allow_pickle=False) as found:
        return dict(found)


def tensors(file: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    with _sound(file, SafetensorError):
        return dict(load(file.read_bytes()))
