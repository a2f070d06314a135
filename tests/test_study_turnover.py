"""The study of turn-over dropout: which jobs differ in what, verdicts on fabricated results, and the noise ceiling as a quantity."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import yaml

from influx.studies import Study
from influx.studies.claims import FAILED, OPEN, REPRODUCED
from influx.studies.quantities import Value

CONF = Path(__file__).parents[1] / "conf"
SEEDS = 4

EXPECTED = {  # what the measurements before this study were; per-seed noise of 0.002 is added
    ("released", "mask_bits_changed_by_dtype"): 0.49,
    ("integer", "mask_bits_changed_by_dtype"): 0.0,
    ("integer", "accuracy_own_mask"): 0.99,
    ("integer", "accuracy_flipped_mask"): 0.55,
    ("integer", "test_accuracy_flipped_masks"): 0.68,
    ("integer", "test_accuracy_without_mask"): 0.788,
    ("integer", "label_from_mask_alone"): 0.3,
    ("integer", "label_by_chance"): 0.1,
    ("gentle", "accuracy_flipped_mask"): 0.87,
    ("gentle", "test_accuracy_flipped_masks"): 0.87,
    ("gentle", "label_from_mask_alone"): 0.11,
    ("gentle", "label_by_chance"): 0.1,
    ("brief", "accuracy_flipped_mask"): 0.87,
    ("brief", "test_accuracy_flipped_masks"): 0.87,
    ("brief", "label_from_mask_alone"): 0.11,
    ("brief", "label_by_chance"): 0.1,
    ("last", "accuracy_flipped_mask"): 0.87,
    ("last", "test_accuracy_flipped_masks"): 0.87,
    ("last", "label_from_mask_alone"): 0.11,
    ("last", "label_by_chance"): 0.1,
    ("ordinary", "test_accuracy"): 0.787,
    ("find", "roc_auc"): 0.96,
    ("find", "roc_auc_minus_loss"): -0.01,
    ("clean", "minus_all_at_0.1"): 0.01,
    ("clean", "minus_random_at_0.1"): 0.01,
    ("clean", "loss: minus_random_at_0.1"): 0.01,
    ("one_model", "spearman"): 0.11,
    ("sixteen_models", "spearman"): 0.33,
    ("sixteen_plain", "spearman"): 0.33,
    ("cost", "ratio"): 0.2,
}


def study() -> Study:
    return Study.read("turnover_dropout", yaml.safe_load((CONF / "study" / "turnover_dropout.yaml").read_text()))


def results(**changes: float) -> pd.DataFrame:
    """`changes`: arm__statistic -> its mean. Seeds differ a little, other than in bits of masks."""
    means = EXPECTED | {tuple(name.split("__")): value for name, value in changes.items()}
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "statistic": statistic,
            "value": mean + 0.002 * (seed - 1.5) * (statistic != "mask_bits_changed_by_dtype"),
        }
        for (arm, statistic), mean in means.items()
        for seed in range(SEEDS)
    ]
    return pd.DataFrame(rows).assign(noise_ceiling=math.nan)


def verdicts(**changes: float) -> dict[str, str]:
    table = results(**changes)
    return {claim.claim: claim.judge(table, SEEDS)[0]["verdict"] for claim in study().claims}


def test_what_was_measured_before_gives_these_verdicts():
    found = verdicts()
    assert {name for name, verdict in found.items() if verdict == FAILED} == {"T0", "T2", "T7"}
    assert {name for name, verdict in found.items() if verdict == REPRODUCED} == set(found) - {"T0", "T2", "T7"}


@pytest.mark.parametrize(
    ("claim", "change", "verdict"),
    [
        ("T0", {"released__mask_bits_changed_by_dtype": 0.0}, REPRODUCED),
        ("T1", {"integer__accuracy_flipped_mask": 0.9}, FAILED),
        ("T2", {"integer__accuracy_flipped_mask": 0.68}, REPRODUCED),
        ("T2", {"integer__accuracy_flipped_mask": 0.75}, FAILED),  # better than on unseen examples is no less wrong
        ("T2b", {"gentle__accuracy_flipped_mask": 0.8}, FAILED),
        ("T3", {"ordinary__test_accuracy": 0.9}, FAILED),
        ("T5", {"clean__minus_random_at_0.1": 0.0}, OPEN),
        ("T5", {"clean__minus_all_at_0.1": -0.05}, FAILED),
        ("T5b", {"clean__loss: minus_random_at_0.1": -0.02}, FAILED),
        ("T6b", {"one_model__spearman": 0.3}, FAILED),
        ("T7", {"integer__label_from_mask_alone": 0.14}, REPRODUCED),
        ("T2c", {"brief__accuracy_flipped_mask": 0.8}, FAILED),
        ("T2d", {"last__accuracy_flipped_mask": 0.8}, FAILED),
        ("T6c", {"sixteen_plain__spearman": 0.1}, FAILED),
        ("T7c", {"brief__label_from_mask_alone": 0.3}, FAILED),
        ("T7d", {"last__label_from_mask_alone": 0.3}, FAILED),
        ("T8", {"cost__ratio": 2.0}, FAILED),
    ],
)
def test_a_claim_follows_the_number_that_it_is_about(claim, change, verdict):
    assert verdicts(**change)[claim] == verdict


def test_claims_that_failed_before_name_the_cause_and_the_arm_that_has_it_otherwise():
    claims = {claim.claim: claim for claim in study().claims}
    for name, switched in (("T0", "T0b"), ("T2", "T2d"), ("T7", "T7d")):
        assert switched in claims[name].explanation
    assert all(claim.paper_value is None for claim in claims.values())


def test_the_released_masks_differ_in_nothing_but_their_draw():
    jobs = {job.arm: job for job in study().jobs("quick", seeds=1)}
    assert set(jobs["released"].settings) - set(jobs["integer"].settings) == {"method.masks=sine"}
    assert "method.sites=[1,3]" in jobs["released"].settings


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_one_and_several_models_are_compared_with_one_truth(scale):
    jobs = {job.arm: job for job in study().jobs(scale, seeds=1)}
    data = {arm: [word for word in jobs[arm].settings if word.startswith("dataset")] for arm in ("one", "four", "sixteen", "truth")}
    assert data["one"] == data["four"] == data["sixteen"] == data["truth"]
    assert "retraining.seeds=8" in jobs["truth"].settings


def test_the_noise_ceiling_is_the_truths_own():
    columns = {"arm": "truth", "statistic": ["spearman", "pearson"] * 2, "seed": [0, 0, 1, 1], "value": 0.1}
    table = pd.DataFrame({**columns, "noise_ceiling": [0.7, 0.6, math.nan, 0.5]})
    assert Value("truth", column="noise_ceiling").per_seed(table).to_dict() == {0: 0.7}  # the other seed's is not defined
    assert Value("truth", "pearson", column="noise_ceiling").per_seed(table).to_dict() == {0: 0.6, 1: 0.5}
