"""The studies of networks on images: chance and drift against their definitions, verdicts on fabricated results, figures, jobs compose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import call
from scipy import stats

from influx.errors import InfluxError
from influx.instantiate import build
from influx.report.figures.strips import Strips
from influx.studies import Study
from influx.studies.claims import FAILED, OPEN, REPRODUCED
from influx.studies.drift import Drift
from influx.studies.permutation import PermutationNull
from influx.studies.quantities import Mean, Quantity, Spread, Value
from influx.studies.results import over_seeds

CONF = Path(__file__).parents[1] / "conf"
NAMES = ("fragility_mnist_fc", "fragility_convnets")


def study(name: str) -> Study:
    return Study.read(name, yaml.safe_load((CONF / "study" / f"{name}.yaml").read_text()))


def run_folder(place: Path, influence: np.ndarray, rows: np.ndarray, change: np.ndarray, control: dict[str, float] | None = None) -> Path:
    """A finished job's folder: `influence` [n_train, n_test], and changes [n_removed, n_test] after the removal of `rows`."""
    place.mkdir(parents=True)
    positions = 7 + 2 * np.arange(len(influence))  # in the data set's own order
    tests = np.arange(influence.shape[1])
    np.savez(place / "influence.npz", influence=influence, train_index=positions, test_index=tests)
    if rows.dtype == bool:
        np.savez(place / "ground_truth.npz", change=change[..., None], train_index=positions, removed=rows, test_index=tests)
    else:
        np.savez(place / "ground_truth.npz", change=change[..., None], train_index=positions[rows], test_index=tests)
    (place / "run.json").write_text(json.dumps({"zero_removal_control": control or {}}))
    return place


def found(rows: list[dict[str, Any]], seed: int = 0) -> dict[str, float]:
    return {row["statistic"]: row["value"] for row in rows if row["seed"] == seed}


# --------------------------------------------------------------------------------------------------------------- chance


def test_permuted_scores_correlate_like_the_known_null_distribution(tmp_path: Path) -> None:
    """Spearman of 40 unrelated pairs has mean 0 and variance 1/39; for a normal of that variance E|ρ| = sqrt(2 / (39 π)) = .128."""
    rng = np.random.default_rng(0)
    influence = rng.normal(size=(200, 1))
    rows = rng.choice(200, 40, replace=False)
    folder = run_folder(tmp_path / "job", influence, rows, influence[rows])  # ρ = 1 as long as scores and changes stay together
    made = found(PermutationNull("a", times=4000).rows({"a": {0: folder}}))
    sd = 39**-0.5
    assert made["spearman_magnitude"] == pytest.approx((2 / (39 * np.pi)) ** 0.5, abs=4 * 0.6 * sd / 4000**0.5)  # four standard errors
    for side, sign in (("null_low", -1), ("null_high", 1)):
        assert made[side] == pytest.approx(sign * 1.96 * sd, abs=0.02)  # a quantile's error, and the normal approximation's
    assert abs(made["spearman"]) < 5 * sd


def test_permutations_are_the_jobs_own_and_repeat(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    influence = rng.normal(size=(30, 2))
    rows = {name: rng.choice(30, 10, replace=False) for name in "ab"}
    folders = {0: run_folder(tmp_path / "a", influence, rows["a"], rng.normal(size=(10, 2)))}
    others = {0: run_folder(tmp_path / "b", influence, rows["b"], influence[rows["b"]])}
    first, again = (PermutationNull("x").rows({"x": folders}) for _ in range(2))
    assert first == again
    assert found(first) != found(PermutationNull("x").rows({"x": others}))


def test_sets_of_several_are_permuted_as_sets(tmp_path: Path) -> None:
    """Groups whose sums are all the same but one: what is permuted are the sums, so that ties show in the magnitudes."""
    influence = np.ones((12, 1))
    influence[0] = 5.0
    mask = np.zeros((4, 12), bool)
    for j in range(4):
        mask[j, 3 * j : 3 * j + 3] = True
    folder = run_folder(tmp_path / "job", influence, mask, np.array([[4.0], [1.0], [2.0], [3.0]]))
    made = found(PermutationNull("a", times=2000).rows({"a": {0: folder}}))
    each = [abs(stats.spearmanr(order, [4, 1, 2, 3]).statistic) for order in np.eye(4)]  # the large sum in each of the four places
    assert made["spearman_magnitude"] == pytest.approx(np.mean(each), abs=0.03)  # 2,000 draws of four values that differ by up to .5


def test_what_has_no_correlation_has_no_null(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "job", np.zeros((8, 1)), np.arange(5), np.ones((5, 1)))
    assert PermutationNull("a").rows({"a": {0: folder}}) == []


# ---------------------------------------------------------------------------------------------------------------- drift


def test_drift_is_the_definition_written_out(tmp_path: Path) -> None:
    change = np.array([[0.9, -1.0], [1.0, -2.0], [1.1, 3.0], [1.4, -1.0]])
    control = {"mean_measurement_change": 0.4, "median_measurement_change": 0.6}
    folder = run_folder(tmp_path / "job", np.zeros((9, 2)), np.arange(4), change, control)
    made = found(Drift("a").rows({"a": {3: folder}}), seed=3)
    assert made["positive_share"] == pytest.approx((4 / 4 + 1 / 4) / 2)
    assert made["one_sign_share"] == pytest.approx((4 / 4 + 3 / 4) / 2)
    assert made["drift"] == 0.4
    spreads = [np.sqrt(np.mean((column - column.mean()) ** 2)) for column in change.T]
    assert made["drift_over_spread"] == pytest.approx(0.6 / np.median(spreads), rel=1e-12)


def test_removals_that_all_do_the_same_have_no_ratio(tmp_path: Path) -> None:
    control = {"mean_measurement_change": 0.4, "median_measurement_change": 0.4}
    folder = run_folder(tmp_path / "job", np.zeros((9, 1)), np.arange(4), np.ones((4, 1)), control)
    assert "drift_over_spread" not in found(Drift("a").rows({"a": {0: folder}}))


# ----------------------------------------------------------------------------------------------------------- quantities


def table(values: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [{"arm": arm, "seed": s, "statistic": "spearman", "value": v} for arm, each in values.items() for s, v in enumerate(each)]
    )


def test_a_mean_is_taken_seed_by_seed_of_seeds_that_have_all() -> None:
    made = Mean([Value("a"), Value("b")]).per_seed(table({"a": [0.0, 0.2, 0.4], "b": [1.0, 0.4]}))
    assert made.to_dict() == pytest.approx({0: 0.5, 1: 0.3})


def test_a_list_of_quantities_is_built_from_yaml() -> None:
    parts = [{"_target_": "influx.studies.quantities.Value", "arm": arm} for arm in "ab"]
    node = {"_target_": "influx.studies.quantities.Spread", "of": parts}
    made = build(node, Quantity, "value")  # type: ignore[type-abstract]
    assert isinstance(made, Spread)
    assert list(made.of) == [Value("a"), Value("b")]
    wrong = {**node, "of": [{"_target_": "influx.studies.drift.Drift", "arm": "a"}]}
    with pytest.raises(InfluxError, match=r"value\.of: influx\.studies\.drift\.Drift is not a kind of .*Quantity"):
        build(wrong, Quantity, "value")  # type: ignore[type-abstract]


# --------------------------------------------------------------------------------------------------------------- claims

HELD = {  # results in which every claim holds: arm -> statistic -> value, or values by case
    "fragility_mnist_fc": {
        "published": {"spearman": {"lowest": -0.3, "": -0.8}},
        "matched": {"spearman": {"lowest": 0.92, "median": 1.13, "": 0.97}},  # a spread of .2 needs one above 1
        "permuted": {"spearman": {"": 0.0}},
    },
    "fragility_convnets": {
        "published": {"spearman": {"lenet_lowest": -0.14, "": 0.13}},
        "aligned": {"spearman": {"lenet_lowest": 0.7, "": 0.95}},
        "matched": {"spearman": {"lenet_lowest": 1.2, "": 0.97}},  # a spread of .2 needs one above 1
        "undamped": {"spearman": {"": 0.4}},
        "permuted": {"spearman_magnitude": {"": 0.128}},
        "drift": {"one_sign_share": {"": 0.99}, "drift_over_spread": {"": 20.0}},
    },
}


def fabricated(name: str, changed: dict[tuple[str, str, str], float] | None = None) -> pd.DataFrame:
    """Four seeds a hair apart; `changed` overrides (arm, statistic, case)."""
    cases, made = study(name).grid["case"], []
    for arm, statistics in HELD[name].items():
        for statistic, by_case in statistics.items():
            for case in cases:
                value = (changed or {}).get((arm, statistic, case), by_case.get(case, by_case[""]))
                made += [
                    {"arm": arm, "case": case, "seed": seed, "statistic": statistic, "value": value + 1e-4 * (-1) ** seed}
                    for seed in range(4)
                ]
    return pd.DataFrame(made)


def verdicts(name: str, changed: dict[tuple[str, str, str], float] | None = None) -> dict[str, str]:
    results = fabricated(name, changed)
    return {claim.claim: claim.judge(results, 2)[0]["verdict"] for claim in study(name).claims}


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_holds_on_results_in_which_it_should(name: str) -> None:
    assert set(verdicts(name).values()) == {REPRODUCED}


@pytest.mark.parametrize(
    ("name", "where", "value", "claim"),
    [
        ("fragility_mnist_fc", ("published", "spearman", "width_8"), -0.2, "F11"),
        ("fragility_mnist_fc", ("matched", "spearman", "width_128"), 0.8, "F12"),
        ("fragility_mnist_fc", ("published", "spearman", "lowest"), -0.75, "E8"),
        ("fragility_mnist_fc", ("matched", "spearman", "median"), 0.95, "E8 matched"),
        ("fragility_mnist_fc", ("permuted", "spearman", "lowest"), 0.7, "E8 noise"),
        ("fragility_mnist_fc", ("matched", "spearman", "percentile"), 0.5, "F13"),
        ("fragility_mnist_fc", ("matched", "spearman", "groups"), 0.5, "F13"),
        ("fragility_convnets", ("published", "spearman", "lenet_highest"), 0.6, "E7"),
        ("fragility_convnets", ("permuted", "spearman_magnitude", "lenet_median"), 0.4, "E7"),
        ("fragility_convnets", ("permuted", "spearman_magnitude", "lenet_median"), 0.01, "E7 level"),
        ("fragility_convnets", ("aligned", "spearman", "lenet_median"), 0.3, "F21"),
        ("fragility_convnets", ("matched", "spearman", "lenet_highest"), 0.7, "F24"),
        ("fragility_convnets", ("undamped", "spearman", "lenet_highest"), 0.9, "F25"),
        ("fragility_convnets", ("published", "spearman", "lenet_lowest"), 0.1, "E8 chance"),
        ("fragility_convnets", ("aligned", "spearman", "lenet_lowest"), 0.9, "E8"),
        ("fragility_convnets", ("matched", "spearman", "lenet_lowest"), 0.9, "E8 matched"),
        ("fragility_convnets", ("drift", "one_sign_share", "lenet_median"), 0.6, "F22"),
        ("fragility_convnets", ("drift", "drift_over_spread", "lenet_highest"), 1.0, "F23"),
    ],
)
def test_each_claim_fails_where_it_should(name: str, where: tuple[str, str, str], value: float, claim: str) -> None:
    assert verdicts(name, {where: value})[claim] == FAILED


@pytest.mark.parametrize("name", NAMES)
def test_a_claim_without_results_is_open(name: str) -> None:
    results = fabricated(name)
    for claim in study(name).claims:
        assert claim.judge(results[results["arm"] == "none"], 2)[0]["verdict"] == OPEN


# -------------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("name", NAMES)
def test_the_figure_draws_whatever_cases_there_are(name: str, tmp_path: Path) -> None:
    figure, results = study(name).figure, fabricated(name)
    first = results["case"].iloc[0]
    for part in (results, results[results["case"] == first], results[results["arm"] == "published"], results[results["arm"] == "none"]):
        figure.save(over_seeds(part), part, {"published": "as published"}, tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 1_000


def test_strips_show_every_seed_its_mean_and_interval_and_chance_as_a_band(tmp_path: Path) -> None:
    held = {
        ("a", "spearman"): (0.1, 0.2, 0.6), ("b", "spearman"): (0.8, 0.9, 0.95),
        ("null", "null_low"): (-0.3,), ("null", "null_high"): (0.2,),
    }  # fmt: skip
    rows = [
        {"arm": arm, "case": "one", "seed": s, "statistic": statistic, "value": value}
        for (arm, statistic), values in held.items()
        for s, value in enumerate(values)
    ]
    results = pd.DataFrame(rows)
    points = over_seeds(results)
    drawn = Strips("case", [{"title": "t", "levels": {"one": "1", "absent": "2"}}], ["a", "b"], "title", chance="null")
    ax = drawn.draw(points, results, {"a": "arm a"}).axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1"]  # a level without results has no place
    dots = [line.get_ydata().tolist() for line in ax.lines if line.get_marker() == "."]
    assert dots == [[0.1, 0.2, 0.6], [0.8, 0.9, 0.95]]
    means = [float(line.get_ydata()[0]) for line in ax.lines if line.get_marker() in "os"]
    assert means == pytest.approx([0.3, (0.8 + 0.9 + 0.95) / 3])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (-0.3, 0.2)
    assert ax.get_legend_handles_labels()[1] == ["95 % of what permuted scores give", "arm a", "b"]


def test_a_panel_with_a_wrong_key_is_refused() -> None:
    with pytest.raises(InfluxError, match=r"a panel of the figure has a key 'titel'.*title"):
        Strips("case", [{"titel": "x", "levels": {}}], ["a"], "t")
    with pytest.raises(InfluxError, match=r"a panel of the figure needs title and levels"):
        Strips("case", [{"title": "x"}], ["a"], "t")


# ----------------------------------------------------------------------------------------------------------------- jobs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_one_job_of_every_arm_and_case_composes(name: str, scale: str, tmp_path: Path) -> None:
    jobs = study(name).jobs(scale, seeds=1)
    assert len({job.place for job in jobs}) == len(jobs)
    cases = {str(job.point["case"]): job for job in jobs if job.arm == "published"}
    for job in [*cases.values(), *{job.arm: job for job in jobs}.values()]:
        done = call("validate", *job.settings, "--cfg", "job", cwd=tmp_path)
        assert done.status in (0, None), (job.place, done.err)
