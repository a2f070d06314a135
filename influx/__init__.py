"""influx: can I trust this influence estimate? Train, estimate, retrain, compare.

`influx.load(path)` opens a finished run, `influx.estimate` and `influx.validate` work on a module and tensors of your own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from influx.api import estimate, validate
    from influx.runs import Run, Sweep, load

__all__ = ["Run", "Sweep", "estimate", "load", "validate"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: `import influx` is instant."""
    if name in ("Run", "Sweep", "load"):
        from influx import runs

        return getattr(runs, name)
    if name in ("estimate", "validate"):
        from influx import api

        return getattr(api, name)
    raise AttributeError(f"module 'influx' has no attribute '{name}'")
