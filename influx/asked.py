"""What is asked of `influx.estimate` and `influx.validate`, as the configuration that the command line would compose for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from influx import composing, rules
from influx.configuration import conf_dir
from influx.errors import InfluxError, nearest
from influx.estimators import Estimator
from influx.measurements import Measurement
from influx.own import Loss

YOURS = ("dataset", "model", "objective", "device", "dtype", "threads", "task", "logger", "test_points")  # no settings here
OFF = {"store.dir": None, "pictures": False}  # unless asked for, the pictures


@dataclass(frozen=True)
class Asked:
    """What was asked for besides model and data; `named` are settings that have arguments of their own."""

    command: str
    loss: str | Loss
    method: str | Estimator
    measurement: str | Measurement
    named: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def estimator(self) -> Estimator | None:
        return None if isinstance(self.method, str) else self.method

    @property
    def objects(self) -> dict[str, str]:
        """Names of the parts that the configuration does not describe."""
        given = {"method": self.method, "measurement": self.measurement, "objective": self.loss}
        names = {key: getattr(part, "__name__", type(part).__name__) for key, part in given.items() if not isinstance(part, str)}
        return names | ({"training": "as given"} if self.command == "estimate" else {})

    def _chosen(self) -> dict[str, Any]:
        """The settings, as the command line has them.

        Raises:
            InfluxError: one is given twice, or belongs to what is given as an object; or an object is of the wrong kind.
        """
        parts = {"method": (self.method, Estimator), "measurement": (self.measurement, Measurement)}
        for key, (part, family) in parts.items():
            if not isinstance(part, str | family):
                raise InfluxError(f"{key} must be the name of one or a kind of {family.__name__}; this is a {type(part).__name__}.")
        if not isinstance(self.loss, str) and not callable(self.loss):
            raise InfluxError(
                f"loss must be the name of an objective or a function of outputs and targets; this is a {type(self.loss).__name__}."
            )
        named = {key: part for key, (part, _) in parts.items() if isinstance(part, str)} | dict(self.named)
        named |= {"objective": self.loss} if isinstance(self.loss, str) else {}
        for key in self.settings:
            group = key.partition(".")[0]
            if group in YOURS:
                raise InfluxError(f"settings cannot have {key}: data, model, loss, number type and device are those that you give.")
            if group == "store":
                raise InfluxError(f"settings cannot have {key}: what functions of yours compute has no name, so nothing is kept for later.")
            if key in named or group in self.objects:
                raise InfluxError(f"settings cannot have {key} besides the argument that says it: leave one of the two out.")
        return {**named, **OFF, **self.settings}

    def composed(self) -> tuple[dict[str, Any], dict[str, str], list[str]]:
        """The configuration, the chosen option of each group, and the words that say the same on the command line."""
        chosen = self._chosen()
        groups = [place.name for place in conf_dir().iterdir() if place.is_dir()]
        for key in ("method", "measurement", "training", "objective"):
            _check_option(key, chosen.get(key))
        words = composing.words_of(chosen, groups)
        try:
            config, choices = composing.compose(self.command, words)
        except composing.ERRORS as error:
            from influx import app  # with what the command line says of it

            raise InfluxError(app.explain(error, self.command, words)[0]) from error
        rules.check_config(config)
        rules.check_command(config)
        return config, choices, words


def _check_option(group: str, name: Any) -> None:
    options = sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))
    if name is not None and name not in options:
        raise InfluxError(f"{group}={name} is not known; choose from {', '.join(options)}.{nearest(str(name), options)}")
