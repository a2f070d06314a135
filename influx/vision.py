"""The one door to torchvision: nothing else in the project imports it.

A torchvision built for CUDA beside a CPU-only torch (or any other mismatched pair) cannot load its native library, and its
import then stops with `operator torchvision::nms does not exist`: the package attaches shape rules to two native operators
without asking whether they are there. Data sets, transforms and models need neither operator, so both are declared first,
without an implementation; only a call of the native operators themselves still fails, with torchvision's own message.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from importlib.machinery import PathFinder
from importlib.util import find_spec
from types import ModuleType

import torch

from influx.errors import InfluxError

NAMESPACE = "torchvision"
MISSING_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@functools.cache
def torchvision() -> ModuleType:
    """The torchvision package, imported at the first call (about two seconds) and usable without its native library.

    Raises `InfluxError` when torchvision is not installed.
    """
    if not native_library_loads():
        _declare_missing_operators()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")  # the same mismatch; images come from PIL
        return importlib.import_module(NAMESPACE)


def native_library_loads() -> bool:
    """Load torchvision's compiled operators, as its own import does in silence, and say whether that worked."""
    package = find_spec(NAMESPACE)
    if package is None:
        raise InfluxError("torchvision is not installed: this data set or model needs it (pip install torchvision).")
    library = PathFinder.find_spec("_C", list(package.submodule_search_locations or []))
    if library is None or library.origin is None:
        return False
    try:
        torch.ops.load_library(library.origin)
    except (ImportError, OSError):
        return False
    return True


@functools.cache  # the cache keeps the library object alive: its declarations end with it
def _declare_missing_operators() -> torch.library.Library:
    """Give every operator that torchvision's import wants a signature, unless someone has declared it already."""
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    for name, signature in MISSING_OPERATORS.items():
        if getattr(torch.ops.torchvision, name, None) is None:
            library.define(signature)
    return library
