"""The one exception that is the user's to mend: it is shown as a single line, without a traceback, with exit status 2."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable


class InfluxError(Exception):
    """What is wrong, what is allowed, what to do. Raised before anything is written whenever that is possible."""


class NumericalError(InfluxError):
    """A computation that broke down (divergence, a singular curvature); the message names the knob to turn."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'lissa'?"`, or an empty string when nothing among `choices` is close to `word`."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


class AccuracyWarning(UserWarning):
    """A number was computed, but it deserves less trust than usual; the message says which, why, and what would help."""


def warn_accuracy(message: str) -> None:
    warnings.warn(message, AccuracyWarning, stacklevel=3)
