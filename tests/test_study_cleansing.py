"""The study of cleaning with HYDRA: which jobs differ in what, verdicts on fabricated results, and its figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from influx.errors import InfluxError
from influx.report.figures.forest import Forest
from influx.studies import Study
from influx.studies.claims import FAILED, REPRODUCED
from influx.studies.results import over_seeds

CONF = Path(__file__).parents[1] / "conf"
SEEDS = 4
FINDS = ("exact", "approx", "approx_released", "influence", "influence_released", "tracin")
AUC = dict(zip(FINDS, (0.9, 0.75, 0.7, 0.97, 0.8, 0.85), strict=True)) | {"exact_released": 0.88}
KEEPS = {  # accuracy with 20 % kept
    "keep_exact": 0.54, "keep_approx": 0.35, "keep_influence": 0.6, "keep_approx_released": 0.45, "keep_influence_released": 0.4,
    "clean_labels": 0.8, "continued": 0.46, "keep_exact_released": 0.41,
}  # fmt: skip
ALL, RANDOM, CLEAN = 0.43, 0.1, 0.8


def study() -> Study:
    return Study.read("hydra_cleansing", yaml.safe_load((CONF / "study/hydra_cleansing.yaml").read_text()))


def results(**changes: float) -> pd.DataFrame:
    """The same numbers for both data sets; seeds differ a little. `changes`: arm -> its number."""
    rows = []
    for case in ("digits_20", "digits_80", "mnist5k_20", "mnist5k_80"):
        for arm, value in (AUC | changes).items():
            if arm in AUC:
                loss = 0.98 if case.endswith("20") else 0.8
                rows += [(arm, case, "roc_auc", value), (arm, case, "roc_auc_minus_loss", value - loss), (arm, case, "loss: roc_auc", loss)]
        for arm, value in (KEEPS | changes).items() if case.endswith("80") else ():
            if arm in KEEPS:
                drawn = CLEAN if arm == "clean_labels" else RANDOM
                found = {"accuracy_at_0.8": value, "minus_all_at_0.8": value - ALL, "minus_random_at_0.8": value - drawn}
                found |= {"random: accuracy_at_0.8": drawn, "all: accuracy_at_0": ALL}
                rows += [(arm, case, statistic, number) for statistic, number in found.items()]
    table = pd.DataFrame(rows, columns=["arm", "case", "statistic", "value"])
    parts = [table.assign(seed=seed, value=table["value"] + 0.001 * (seed - 1.5) * (table["arm"] == "exact")) for seed in range(SEEDS)]
    return pd.concat(parts, ignore_index=True).assign(noise_ceiling=np.nan)


def verdict(claim: str, **changes: float) -> str:
    (found,) = [one for one in study().claims if one.claim == claim]
    return found.judge(results(**changes), SEEDS)[0]["verdict"]


def test_released_and_corrected_differ_in_the_named_switches_alone() -> None:
    jobs = {job.arm: set(job.settings) for job in study().jobs("quick", seeds=1) if job.point["case"] == "digits_80"}
    assert jobs["keep_approx_released"] ^ jobs["keep_approx"] == {"method.weight_decay=released", "task.readout=test"}
    assert jobs["keep_influence_released"] ^ jobs["keep_influence"] == {
        "method.curvature=hessian", "method.damping=10", "method.damping=0.01", "task.readout=test",
    }  # fmt: skip
    assert jobs["keep_exact_released"] ^ jobs["keep_approx_released"] == {"method.hessian=none"}
    assert jobs["exact_released"] ^ jobs["approx_released"] == {"method.hessian=none"}
    assert jobs["clean_labels"] ^ jobs["keep_approx_released"] == {"task.labels=clean"}
    assert jobs["continued"] ^ jobs["keep_approx_released"] == {"task.restart=continued"}
    assert jobs["keep_approx"] ^ jobs["keep_exact"] == jobs["approx"] ^ jobs["exact"] == {"method.hessian=none"}
    assert jobs["approx"] ^ jobs["approx_released"] == {"method.weight_decay=released"}


def test_every_seed_has_wrong_labels_of_its_own_and_one_run_a_job() -> None:
    for job in study().jobs("quick"):
        assert f"dataset.noise_seed={job.seed}" in job.settings
        assert "task.seeds=1" in job.settings
        assert ("task=cleansing" in job.settings) == (job.arm in KEEPS)


def test_the_decay_is_one_over_the_number_of_examples_as_in_the_paper() -> None:
    for job in study().jobs("paper", seeds=1):
        said = dict(word.split("=", 1) for word in job.settings)
        assert float(said["training.weight_decay"]) * int(said["dataset.train_size"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("claim", "change", "verdicts"),
    [
        ("H4a", {"keep_approx_released": 0.35}, (REPRODUCED, FAILED)),
        ("H4b", {"keep_approx_released": 0.42}, (REPRODUCED, FAILED)),
        ("H4c", {"keep_approx_released": 0.05}, (REPRODUCED, FAILED)),
        ("H4d", {"keep_approx": 0.7}, (FAILED, REPRODUCED)),
        ("H4e", {"keep_exact": 0.4}, (REPRODUCED, FAILED)),
        ("H4f", {"keep_exact": 0.3}, (REPRODUCED, FAILED)),
        ("H4g", {"keep_influence": 0.3}, (REPRODUCED, FAILED)),
        ("H4h", {"clean_labels": 0.83}, (REPRODUCED, FAILED)),
        ("H4j", {"continued": 0.5}, (REPRODUCED, FAILED)),
        ("H4k", {"approx_released": 0.81}, (FAILED, REPRODUCED)),
        ("H4l", {"approx": 0.98}, (FAILED, REPRODUCED)),
        ("H4m", {"exact": 0.7}, (REPRODUCED, FAILED)),
        ("H4n", {"influence": 0.99}, (REPRODUCED, FAILED)),
        ("H4o", {"influence": 0.79}, (REPRODUCED, FAILED)),
        ("H4p", {"keep_exact_released": 0.5}, (REPRODUCED, FAILED)),
        ("H4q", {"keep_exact_released": 0.6}, (REPRODUCED, FAILED)),
        ("H4r", {"exact_released": 0.95}, (REPRODUCED, FAILED)),
    ],
)
def test_each_claim_is_decided_by_its_own_arms(claim: str, change: dict[str, float], verdicts: tuple[str, str]) -> None:
    assert (verdict(claim), verdict(claim, **change)) == verdicts


def test_the_figure_has_every_arm_and_line() -> None:
    made = study()
    table = results()
    drawn = made.figure.draw(over_seeds(table), table, {name: arm.label for name, arm in made.arms.items()})
    above, below = (band.axes for band in drawn.subfigs)
    assert [ax.get_title() for ax in above] == ["digits, 20 % wrong", "digits, 80 %", "MNIST, 20 %", "MNIST, 80 %"]
    assert [ax.get_title() for ax in below] == ["digits", "MNIST"]
    dots = [float(line.get_xdata()[0]) for line in above[1].lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots, [AUC[arm] for arm in FINDS])
    assert below[0].get_yticklabels()[0].get_text() == "HYDRA, exact"
    lines = {line.get_label(): float(line.get_xdata()[0]) for line in below[0].lines if not line.get_label().startswith("_")}
    assert lines["everything"] == pytest.approx(ALL)
    assert lines["random 20 %"] == pytest.approx(RANDOM)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"statistic": "x", "label": "x", "levels": {}, "arm": []}, r"has a key 'arm'; .* Did you mean 'arms'\?"),
        ({"statistic": "x"}, "a row of the figure needs label, levels, arms"),
    ],
)
def test_a_row_that_is_wrong_is_refused(row: dict[str, object], message: str) -> None:
    with pytest.raises(InfluxError, match=message):
        Forest("case", [row], "title")
