"""What a rule for a knob is, and the kinds of rules that there are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from influx import memory


@dataclass(frozen=True)
class Rule:
    """`wanted` completes the sentence "... must be"; `accepts` decides; `choices` feed the nearest-match hint."""

    wanted: str
    accepts: Callable[[Any], bool]
    choices: tuple[str, ...] = ()

    def or_null(self) -> Rule:
        return Rule(f"{self.wanted}, or null", lambda v: v is None or self.accepts(v), self.choices)

    def or_word(self, word: str) -> Rule:
        return Rule(f"{self.wanted}, or {word}", lambda v: v == word or self.accepts(v), (*self.choices, word))


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def whole(at_least: int) -> Rule:
    return Rule(f"a whole number of at least {at_least}", lambda v: is_whole(v) and v >= at_least)


def number(*, above: float = -math.inf, at_least: float = -math.inf, below: float = math.inf, at_most: float = math.inf) -> Rule:
    limits = {"above": above, "of at least": at_least, "below": below, "of at most": at_most}
    said = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit))
    return Rule(
        f"a number {said}".rstrip(),
        lambda v: is_number(v) and above < v < below and at_least <= v <= at_most,
    )


def choice(*options: str) -> Rule:
    return Rule(f"one of {', '.join(options)}", lambda v: isinstance(v, str) and v in options, options)


def one_of_numbers(*options: int) -> Rule:
    return Rule(f"one of {', '.join(map(str, options))}", lambda v: is_whole(v) and v in options)


def list_of(rule: Rule) -> Rule:
    return Rule(f"a list, each item {rule.wanted}", lambda v: isinstance(v, list | tuple) and all(map(rule.accepts, v)))


def _is_size(value: Any) -> bool:
    try:
        memory.parse(value)
    except ValueError:
        return False
    return isinstance(value, str | int) and not isinstance(value, bool)


def _is_selection(value: Any) -> bool:
    return isinstance(value, str) and (value in ("all", "last_layer") or any(sign in value for sign in "*?[."))


def _are_layers(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(whole(1).accepts, value)) and len(set(value)) == len(value)


FLAG = Rule("true or false", lambda v: isinstance(v, bool))
PICTURES = Rule(
    "true, false, or a list of pdf and svg",
    lambda v: isinstance(v, bool) or (isinstance(v, list | tuple) and {*v} <= {"png", "pdf", "svg"} and len({*v}) == len(v) > 0),
    ("pdf", "svg"),
)
SIZE = Rule("a size of at least 1MiB, such as 2GiB or 500MB", _is_size)
PARAMS = Rule("all, last_layer, or a pattern of parameter names such as '*.weight'", _is_selection, ("all", "last_layer"))
TEXT = Rule("a text", lambda v: isinstance(v, str) and v != "")
INDEX = list_of(whole(0)).or_null()
SITES = Rule("a list of different layers' numbers, counted from 1", lambda v: _are_layers(v)).or_null()
SHARES = Rule(
    "a list of different numbers above 0 and of at most 1",
    lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(is_number(x) and 0 < x <= 1 for x in v) and len({*v}) == len(v),
)
COUNTS = Rule(
    "a list of different whole numbers of at least 1",
    lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(map(whole(1).accepts, v)) and len({*v}) == len(v),
)
WORD_SETS = Rule(
    "a list of lists of words",
    lambda v: isinstance(v, list | tuple) and all(isinstance(x, list | tuple) and all(map(TEXT.accepts, x)) for x in v),
)
RATES = Rule(
    "a list of different numbers above 0",
    lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(is_number(x) and x > 0 for x in v) and len({*v}) == len(v),
)
WAYS = Rule(
    "a list of different ones of undo, amplify, both",
    lambda v: isinstance(v, list | tuple) and len(v) > 0 and {*v} <= {"undo", "amplify", "both"} and len({*v}) == len(v),
)
STRENGTH = Rule("a number above -1 and of at most 1, other than 0", lambda v: is_number(v) and -1 < v <= 1 and v != 0)
