"""The contract of a logger, and how it is opened and told: a logger never costs a run its results."""

from __future__ import annotations

import importlib.util
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from influx.errors import InfluxError
from influx.instantiate import build
from influx.loggers.account import Account

LONGEST = 200  # characters of what a tracker says when it fails


class Logger(ABC):
    """A place that keeps accounts of runs: TensorBoard, MLflow, Weights & Biases, or one of your own. Options only.

    The package's own are in `influx/loggers`; a user's is any subclass that a YAML file in a folder `logger/` names. `modules` are imported
    by `log` and looked for before anything is trained; `extra` is what installs them.
    """

    modules: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    @abstractmethod
    def log(self, account: Account) -> None:
        """Keep the account of one run that has ended, finished or failed; called once, after every file of the run is written.

        Whatever it raises becomes one line of warning.
        """


def open_logger(node: Mapping[str, Any] | None) -> Logger | None:
    """The logger of a configuration, or None when it has none.

    Raises:
        InfluxError: it is none, or what it needs is not installed; nothing has been trained by then.
    """
    if node is None:
        return None
    logger = build(node, Logger, "logger")
    absent = [name for name in logger.modules if not _is_there(name)]
    if absent:
        how = f"pip install 'influx[{logger.extra}]'" if logger.extra else f"install {', '.join(absent)}"
        raise InfluxError(f"{type(logger).__name__} needs {', '.join(absent)}, which is not installed: {how}, or leave logger= out.")
    return logger


def tell(logger: Logger, account: Callable[[], Account]) -> str | None:
    """Draw up the account and hand it over; one line when that went wrong."""
    try:
        logger.log(account())
    except Exception as error:  # whatever a tracker's client or server may raise
        said = textwrap.shorten((str(error).strip() or type(error).__name__).splitlines()[0], LONGEST, placeholder=" ...")
        return f"{type(logger).__name__} did not take the account of this run ({said}); the run folder has everything."
    return None


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False
