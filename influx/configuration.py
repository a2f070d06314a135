"""Where the configuration folder is, and how a text is written as a value on Hydra's command line; imports nothing heavy."""

from __future__ import annotations

import re
from pathlib import Path

from influx.errors import InfluxError


def conf_dir() -> Path:
    """The folder of the configuration: in the package (a wheel), else beside it (a checkout).

    Raises:
        InfluxError: neither is there.
    """
    package = Path(__file__).resolve().parent
    for place in (package / "conf", package.parent / "conf"):
        if (place / "base.yaml").is_file():
            return place
    raise InfluxError(f"the configuration folder conf/ is missing from {package} and from {package.parent}: install influx again.")


def quoted(text: str) -> str:
    """A value as Hydra's command-line grammar takes any text: in single quotes, where a backslash counts only before another quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"
