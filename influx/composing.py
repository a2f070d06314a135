"""A command's configuration, composed as the command line does, for code that has no command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from influx.configuration import conf_dir, quoted


def compose(command: str, words: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration and the chosen option of each group. A Hydra that is running is left as it is.

    Raises:
        HydraException, OmegaConfBaseException, ValueError: a word does not fit.
    """
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = hydra.compose(command, list(words), return_hydra_config=True)
            choices = {key: value for key, value in composed.hydra.runtime.choices.items() if "/" not in key and value}
            plain = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            config: dict[str, Any] = OmegaConf.to_container(plain, resolve=True)  # type: ignore[assignment]
            return config, choices
    finally:
        GlobalHydra.instance().hydra = running


def typed(words: Iterable[str]) -> list[str]:
    """The words of a command line as Hydra keeps them, without resolving those that refer to something (`hydra.sweep.subdir='${seed}'`)."""
    kept: list[Any] = OmegaConf.to_container(words, resolve=False) if isinstance(words, ListConfig) else list(words)  # type: ignore[assignment]
    return [str(word) for word in kept]


def words_of(settings: Mapping[str, Any], groups: Sequence[str]) -> list[str]:
    """Settings as words of the command line: `{"method.damping": 0.1}` is `method.damping=0.1`."""
    return [f"{key}={value if key in groups else _value(value)}" for key, value in settings.items()]


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_value, value))}]"
    return str(value)


ERRORS = (HydraException, OmegaConfBaseException, ValueError)  # of `compose`
