"""`key=value` words of the commands that are not Hydra's: `influx store`, `influx doctor`, `influx report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from influx.errors import InfluxError, nearest
from influx.rule_kinds import FLAG, Rule


def settings(words: Sequence[str], rules: Mapping[str, Rule], known: Sequence[str] | None = None) -> dict[str, Any]:
    """The words as a dictionary; `known` are the keys that count here, all of the rules' unless said.

    Raises:
        InfluxError: a key that is not known, or a value that its rule refuses.
    """
    known = list(rules) if known is None else known
    found: dict[str, Any] = {}
    for word in words:
        key, _, text = word.partition("=")
        if key not in known:
            raise InfluxError(f"there is no key '{key}' here; there are {', '.join(known)}.{nearest(key, known)}")
        value = {"true": True, "false": False}.get(text, text) if rules[key] is FLAG else text
        if not rules[key].accepts(value):
            raise InfluxError(f"{key}={text} is not possible: it must be {rules[key].wanted}.")
        found[key] = value
    return found
