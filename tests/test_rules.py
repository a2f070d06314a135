"""The rules of the public knobs: what each kind accepts, refuses, and says."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import pytest

from influx import rules
from influx.errors import InfluxError, nearest
from influx.rule_kinds import FLAG, INDEX, TEXT, Rule, choice, list_of, number, one_of_numbers, whole
from influx.rules import NEEDED, RULES

OUTSIDE = [None, "1", "", [], {}, True, False, math.nan, math.inf, -math.inf]  # what no plain number or whole number is

KINDS: list[tuple[str, Rule, list[Any], list[Any], str]] = [
    ("whole", whole(1), [1, 2, 10**12], [0, -1, 1.0, 1.5, *OUTSIDE], "a whole number of at least 1"),
    ("number", number(), [0, -3, 2.5, 1e-300], OUTSIDE, "a number"),
    ("above", number(above=0), [1e-300, 1, 7.5], [0, 0.0, -1, *OUTSIDE], "a number above 0"),
    ("at least, below", number(at_least=0, below=1), [0, 0.5, 0.999], [1, 1.0, -1e-9], "a number of at least 0 and below 1"),
    ("at least, at most", number(at_least=0, at_most=1), [0, 1, 0.5], [1.001, -0.001], "a number of at least 0 and of at most 1"),
    ("choice", choice("a", "b"), ["a", "b"], ["c", "A", "", None, 1, ["a"]], "one of a, b"),
    ("numbers", one_of_numbers(11, 13), [11, 13], [12, 11.0, "11", None, True], "one of 11, 13"),
    ("flag", FLAG, [True, False], [0, 1, "true", "yes", None], "true or false"),
    ("text", TEXT, ["a", " "], ["", None, 1, ["a"]], "a text"),
    ("list", list_of(whole(0)), [[], [0, 3], (1,)], [[-1], [0, "1"], [True], 3, None], "a list, each item a whole number of at least 0"),
    ("index", INDEX, [None, [], [5]], [[-1], 5, "5"], "a list, each item a whole number of at least 0, or null"),
    ("or null", whole(1).or_null(), [None, 1], [0, "null", "1"], "a whole number of at least 1, or null"),
    ("or word", whole(1).or_word("auto"), ["auto", 1], [0, None, "aut"], "a whole number of at least 1, or auto"),
    ("both", number(above=0).or_word("auto").or_null(), ["auto", None, 0.1], [0, "no"], "a number above 0, or auto, or null"),
]


@pytest.mark.parametrize(("rule", "accepted", "refused", "wanted"), [kind[1:] for kind in KINDS], ids=[kind[0] for kind in KINDS])
def test_a_kind_accepts_refuses_and_says(rule: Rule, accepted: list[Any], refused: list[Any], wanted: str) -> None:
    assert [value for value in accepted if not rule.accepts(value)] == []
    assert [value for value in refused if rule.accepts(value)] == []
    assert rule.wanted == wanted


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.lr", -1, "training.lr=-1 is not possible: it must be a number above 0."),
        ("dtype", "float46", "dtype=float46 is not possible: it must be one of float32, float64. Did you mean 'float64'?"),
        ("threads", "aut", "threads=aut is not possible: it must be a whole number of at least 1, or auto. Did you mean 'auto'?"),
        ("retraining.start", "war", "retraining.start=war is not possible: it must be one of scratch, warm. Did you mean 'warm'?"),
        ("device", 3, "device=3 is not possible: it must be one of auto, cpu, cuda."),
        ("dataset.train_size", 0, "dataset.train_size=0 is not possible: it must be a whole number of at least 1, or null."),
    ],
)
def test_a_refusal_says_what_is_wrong_and_what_would_be_right(key: str, value: Any, message: str) -> None:
    with pytest.raises(InfluxError, match=f"^{re.escape(message)}$"):
        rules.check_value(key, value)


def test_a_key_without_a_rule_is_its_owners_business() -> None:
    rules.check_value("method.of_my_own", object())
    rules.check_config({"method": {"of_my_own": object(), "deeper": {"still": None}}})


def test_a_configuration_is_checked_to_its_last_leaf() -> None:
    rules.check_config({"seed": 0, "method": {"solver": {"depth": 1}}})
    with pytest.raises(InfluxError, match=r"^method\.solver\.depth=0 is not possible"):
        rules.check_config({"seed": 0, "method": {"solver": {"depth": 0}}})


@pytest.mark.parametrize("command", NEEDED)
@pytest.mark.parametrize("key", sorted({key for keys in NEEDED.values() for key in keys}))
def test_a_command_needs_its_own_settings(command: str, key: str) -> None:
    config = {"command": command, **{needed: {} for keys in NEEDED.values() for needed in keys}}
    rules.check_command(config)
    del config[key]
    if key in NEEDED[command]:
        with pytest.raises(InfluxError, match=f"the configuration has no '{key}', and influx {command} needs it: leave out ~{key}"):
            rules.check_command(config)
    else:
        rules.check_command(config)


def test_a_groups_settings_cannot_be_replaced_by_a_word() -> None:
    config = {"command": "train", **{needed: {} for needed in NEEDED["train"]}, "model": "mlp"}
    with pytest.raises(InfluxError, match=r"model=mlp is not possible here: change single settings \(model\.<name>=\.\.\.\)"):
        rules.check_command(config)


@dataclass
class Knobs:
    lr: Any = 0.1
    unknown: Any = None

    def __post_init__(self) -> None:
        rules.check_fields("training", self)


def test_a_constructor_refuses_what_the_command_line_refuses() -> None:
    assert Knobs(lr=1).lr == 1
    with pytest.raises(InfluxError, match=r"^training\.lr=0 is not possible: it must be a number above 0\.$"):
        Knobs(lr=0)


@pytest.mark.parametrize("key", sorted(RULES))
def test_no_rule_accepts_just_anything(key: str) -> None:
    strange = object()
    assert not RULES[key].accepts(strange)
    assert not RULES[key].accepts(-1)
    assert RULES[key].wanted


@pytest.mark.parametrize(
    ("word", "hint"),
    [("lisa", " Did you mean 'lissa'?"), ("exakt", " Did you mean 'exact'?"), ("lissa", " Did you mean 'lissa'?"), ("zzz", ""), ("", "")],
)
def test_nearest_is_a_near_one_or_nothing(word: str, hint: str) -> None:
    assert nearest(word, ["cg", "exact", "lissa"]) == hint
