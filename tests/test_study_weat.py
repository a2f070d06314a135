"""The study of word bias: which jobs differ in what, and verdicts on fabricated results."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from influx.studies import Study
from influx.studies.claims import FAILED, OPEN, REPRODUCED

CONF = Path(__file__).parents[1] / "conf"
SEEDS = 5
TESTS = ("career", "numbers_arts", "science_arts")

EXPECTED = {  # what the claims of the paper, and what was measured on less text before, would look like; 0.02 of noise is added
    ("influence", "raising_minus_random"): -0.6,
    ("influence", "lowering_minus_random"): 0.6,
    ("influence", "size_minus_chance"): -0.3,
    ("influence", "size_minus_hard"): -0.2,
    ("influence", "size_minus_trained"): -0.4,
    ("influence", "loss_ratio"): 1.03,
    ("grad_dot", "raising_minus_random"): -0.6,
    ("as_released", "size_minus_hard"): -0.3,
    ("as_released", "size_minus_trained"): -0.5,
    ("gentle", "size_minus_hard"): -0.3,
    ("agreement", "pearson"): 0.2,
    **{("influence", f"without random: spread:{test}"): 0.3 for test in TESTS},
}


def study() -> Study:
    return Study.read("crossloss_weat", yaml.safe_load((CONF / "study" / "crossloss_weat.yaml").read_text()))


def verdicts(**changes: float) -> dict[str, str]:
    """`changes`: arm__statistic -> its mean."""
    means = EXPECTED | {tuple(name.split("__")): value for name, value in changes.items()}
    rows = [
        {"arm": arm, "start": start, "seed": seed, "statistic": statistic, "value": mean + 0.01 * (seed - 2)}
        for (arm, statistic), mean in means.items()
        for start in (("scratch", "warm") if arm == "grad_dot" else ("scratch",))
        for seed in range(SEEDS)
    ]
    table = pd.DataFrame(rows).assign(noise_ceiling=0.6)
    return {claim.claim: claim.judge(table, SEEDS)[0]["verdict"] for claim in study().claims}


def test_what_the_paper_says_gives_these_verdicts() -> None:
    assert set(verdicts().values()) == {REPRODUCED}


@pytest.mark.parametrize(
    ("claim", "change", "verdict"),
    [
        ("C5a", {"influence__raising_minus_random": 0.6}, FAILED),
        ("C5a", {"influence__raising_minus_random": 0.0}, OPEN),
        ("C5b", {"influence__lowering_minus_random": -0.6}, FAILED),
        ("C5c", {"influence__size_minus_chance": 0.1}, FAILED),
        ("C5d", {"grad_dot__raising_minus_random": 0.1}, FAILED),
        ("C5e", {f"influence__without random: spread:{test}": 0.7 for test in TESTS}, FAILED),
        ("C5f", {"agreement__pearson": -0.24}, FAILED),
        ("C6a", {"influence__size_minus_hard": 0.1}, FAILED),
        ("C6b", {"as_released__size_minus_hard": 0.1}, FAILED),
        ("C6c", {"as_released__size_minus_trained": -0.2}, FAILED),
        ("C6e", {"gentle__size_minus_hard": 0.1}, FAILED),
        ("C6d", {"influence__loss_ratio": 1.3}, FAILED),
    ],
)
def test_a_claim_follows_the_number_that_it_is_about(claim: str, change: dict[str, float], verdict: str) -> None:
    assert verdicts(**change)[claim] == verdict


def test_arms_differ_in_nothing_but_their_switch() -> None:
    jobs = {job.arm: set(job.settings) for job in study().jobs("quick", seeds=1) if job.point["start"] == "scratch"}
    assert jobs["gentle"] ^ jobs["influence"] == {"task.rates=[0.001,0.003]"}
    assert jobs["as_released"] ^ jobs["influence"] == {"task.chosen_on=reported"}


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_all_arms_are_about_the_same_models(scale: str) -> None:
    """Data, objective, model and training are the same, so that arms of a seed share models and random sets."""
    groups = ("dataset", "objective", "model", "training", "measurement", "dtype", "seed")
    same = [tuple(word for word in job.settings if word.startswith(groups)) for job in study().jobs(scale, seeds=1)]
    assert len(set(same)) == 1


def test_no_number_of_the_paper_is_claimed_to_be_known() -> None:
    assert all(claim.paper_value is None for claim in study().claims)
