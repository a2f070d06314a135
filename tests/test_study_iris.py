"""The three Iris studies: what they compute from jobs has closed forms, their claims judge tables as they should, their figures draw."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scipy import stats

from influx.errors import InfluxError
from influx.report.figures.waterfall import Waterfall
from influx.report.plots import style
from influx.studies.comparisons import EstimateAgreement
from influx.studies.folders import estimate_correlations, truths
from influx.studies.quantities import Contrast, Value
from influx.studies.results import over_seeds
from influx.studies.study import Study
from influx.studies.switches import Switches, parse, shares, subsets, write

CONF = Path(__file__).parents[1] / "conf"
NAMES = ("fragility_iris_depth", "fragility_iris_width", "fragility_causes")
ORDER = ["solved", "weight decay", "bias", "retraining"]
NETWORKS = ["depth 1, width 5", "depth 8, width 5", "depth 1, width 50"]
EXACT = 1e-12  # sums of a few numbers below 1 in float64


def study(name: str) -> Study:
    return Study.read(name, yaml.safe_load((CONF / "study" / f"{name}.yaml").read_text()))


def composed(words: tuple[str, ...]) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base=None):
        return OmegaConf.to_container(compose("validate", overrides=list(words)))


def write_job(place: Path, influence: np.ndarray, change: np.ndarray, removed: list[int], tests: tuple[int, ...] = (83,)) -> Path:
    """A run folder's two arrays; training examples are 10, 11, ... and influence has a row for each."""
    place.mkdir(parents=True)
    known = np.arange(10, 10 + len(influence))
    np.savez(place / "influence.npz", influence=influence, train_index=known, test_index=np.array(tests))
    np.savez(place / "ground_truth.npz", change=change[:, :, None], train_index=np.array(removed), test_index=np.array(tests))
    return place


# ---------------------------------------------------------------------------------------------------------------- crossing


def crossed(estimate: Path, truth: Path) -> dict[str, float]:
    return estimate_correlations(estimate, truths({0: truth})[0])


def test_a_crossed_correlation_pairs_rows_by_their_index(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores, change = rng.normal(size=(12, 1)), rng.normal(size=(5, 1))
    removed = [21, 10, 13, 19, 12]  # in an order of the truth's own
    one = write_job(tmp_path / "one", scores, rng.normal(size=(5, 1)), removed)
    other = write_job(tmp_path / "other", rng.normal(size=(12, 1)), change, removed)
    found = crossed(one, other)
    predicted = scores[np.array(removed) - 10, 0]
    assert found["spearman"] == pytest.approx(stats.spearmanr(predicted, change[:, 0]).statistic, abs=EXACT)
    assert found["pearson"] == pytest.approx(stats.pearsonr(predicted, change[:, 0]).statistic, abs=EXACT)


def test_a_crossing_has_the_seeds_that_both_arms_have(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    folders = [write_job(tmp_path / str(k), rng.normal(size=(9, 1)), rng.normal(size=(6, 1)), list(range(12, 18))) for k in range(4)]
    comparison = EstimateAgreement("estimate", "truth")
    assert comparison.arms == ("estimate", "truth")
    rows = comparison.rows({"estimate": {0: folders[0], 1: folders[1]}, "truth": {1: folders[2], 2: folders[3]}})
    assert {(row["seed"], row["statistic"]) for row in rows} == {(1, "pearson"), (1, "spearman")}
    assert rows[1]["value"] == crossed(folders[1], folders[2])["spearman"]


def test_only_jobs_about_the_same_examples_can_be_crossed(tmp_path: Path) -> None:
    scores, change = np.arange(6.0)[:, None], np.arange(3.0)[:, None]
    one = write_job(tmp_path / "one", scores, change, [10, 11, 12])
    with pytest.raises(InfluxError, match="not about the same data: both need the same split and test examples"):
        crossed(one, write_job(tmp_path / "two", scores, change, [10, 11, 99]))
    with pytest.raises(InfluxError, match="not about the same data"):
        crossed(one, write_job(tmp_path / "three", scores, change, [10, 11, 12], tests=(84,)))


# ---------------------------------------------------------------------------------------------------------------- switches


def test_shares_of_an_additive_loss_are_its_terms() -> None:
    worth = dict(zip(ORDER, (0.3, 0.2, -0.1, 0.5), strict=True))
    found = shares(ORDER, {mended: 0.05 + sum(worth[name] for name in mended) for mended in subsets(ORDER)})
    assert found == pytest.approx(worth, abs=EXACT)


def test_shares_of_what_needs_two_switches_are_halves() -> None:
    found = shares(ORDER, {mended: 0.8 * ({"bias", "retraining"} <= mended) for mended in subsets(ORDER)})
    assert found == pytest.approx({"solved": 0, "weight decay": 0, "bias": 0.4, "retraining": 0.4}, abs=EXACT)


def test_shares_are_the_mean_over_all_orders() -> None:
    rng = np.random.default_rng(2)
    value = {mended: rng.uniform(-1, 1) for mended in subsets(ORDER)}
    gains: dict[str, list[float]] = {name: [] for name in ORDER}
    for order in itertools.permutations(ORDER):
        for place, name in enumerate(order):
            gains[name].append(value[frozenset(order[: place + 1])] - value[frozenset(order[:place])])
    assert shares(ORDER, value) == pytest.approx({name: np.mean(each) for name, each in gains.items()}, abs=EXACT)


def test_sets_of_switches_are_read_as_they_are_written() -> None:
    assert {parse(write(mended, ORDER)) for mended in subsets(ORDER)} == set(subsets(ORDER))
    assert write(frozenset(), ORDER) == "none"
    assert write(frozenset({"retraining", "bias"}), ORDER) == "bias + retraining"


ESTIMATES = {"none": "published", "precise": "precise"}
TRUTHS = {"none": "published", "retraining": "matched"}


@pytest.fixture
def switched(tmp_path: Path) -> tuple[Switches, dict[str, dict[int, Path]]]:
    """Two switches, an extra defect, two seeds of random jobs."""
    rng = np.random.default_rng(3)
    removed = list(range(12, 20))
    folders = {
        arm: {seed: write_job(tmp_path / arm / str(seed), rng.normal(size=(15, 1)), rng.normal(size=(8, 1)), removed) for seed in (0, 1)}
        for arm in ("published", "precise", "matched", "shuffled")
    }
    return Switches(["precise", "retraining"], ESTIMATES, TRUTHS, {"other": "shuffled"}, {"shuffled index": "shuffled"}), folders


def test_every_number_about_a_switch_is_a_difference_of_correlations(switched: tuple[Switches, dict[str, dict[int, Path]]]) -> None:
    comparison, folders = switched
    table = pd.DataFrame(comparison.rows(folders)).set_index(["seed", "statistic"])["value"]
    for seed in (0, 1):
        v = {
            (e, t): crossed(folders[e][seed], folders[t][seed])["spearman"]
            for e in ("published", "precise", "shuffled")
            for t in ("published", "matched")
        }
        start, end = v["published", "published"], v["precise", "matched"]
        wanted = {
            "mended: none": start,
            "mended: precise": v["precise", "published"],
            "mended: retraining": v["published", "matched"],
            "mended: precise + retraining": end,
            "lost": end - start,
            "step: precise": v["precise", "published"] - start,
            "step: retraining": end - v["precise", "published"],
            "first: retraining": v["published", "matched"] - start,
            "last: precise": end - v["published", "matched"],
            "first: other": v["shuffled", "published"] - start,
            "last: shuffled index": end - v["shuffled", "matched"],
            "share: precise": (v["precise", "published"] - start + end - v["published", "matched"]) / 2,
        }
        assert table[seed][list(wanted)].to_dict() == pytest.approx(wanted, abs=EXACT)
        assert table[seed][["share: precise", "share: retraining"]].sum() == pytest.approx(end - start, abs=EXACT)
    lost = table[:, "lost"].mean()
    percent = [table[:, f"percent: {name}"].mean() for name in ("precise", "retraining")] if lost > 0 else [0, 100]
    assert sum(percent) == pytest.approx(100)


def test_nothing_is_divided_by_a_loss_that_there_is_not(switched: tuple[Switches, dict[str, dict[int, Path]]]) -> None:
    _, folders = switched
    same = {arm: folders["published"] for arm in ("published", "precise", "matched")}
    rows = Switches(["precise", "retraining"], ESTIMATES, TRUTHS).rows(same)
    assert not [row for row in rows if row["statistic"].startswith("percent")]
    assert {row["value"] for row in rows if row["statistic"] == "lost"} == {0.0}


def test_a_seed_that_lacks_a_job_is_left_out(switched: tuple[Switches, dict[str, dict[int, Path]]]) -> None:
    comparison, folders = switched
    del folders["precise"][0]
    assert {row["seed"] for row in comparison.rows(folders)} == {1}


def test_every_set_of_switches_needs_its_jobs() -> None:
    with pytest.raises(InfluxError, match="switches: 'precise' needs one estimate and one truth, and has 0 pairs of them"):
        Switches(["precise", "retraining"], {"none": "published"}, TRUTHS)


# ---------------------------------------------------------------------------------------------------------------- quantities, grids


def test_a_contrast_weighs_what_all_seeds_have() -> None:
    rows = [("a", 0, 0.5), ("a", 1, 0.25), ("b", 0, 1.0), ("b", 2, 1.0)]
    results = pd.DataFrame([{"arm": arm, "seed": seed, "statistic": "spearman", "value": value} for arm, seed, value in rows])
    assert Contrast([Value("a"), Value("b")], [1, -0.5]).per_seed(results).to_dict() == pytest.approx({0: 0.0})
    with pytest.raises(InfluxError, match="a contrast of 2 quantities has 1 weights: give one a quantity"):
        Contrast([Value("a"), Value("b")], [1])


def test_a_scale_may_give_an_arm_a_grid_of_its_own() -> None:
    made = study("fragility_iris_depth")
    depths = {scale: {job.point["model.depth"] for job in made.jobs(scale) if job.arm == "swa"} for scale in ("quick", "paper")}
    assert depths == {"quick": {1}, "paper": set(range(1, 9))}
    node = yaml.safe_load((CONF / "study" / "fragility_iris_depth.yaml").read_text())
    node["scales"]["quick"]["arms"] = {"sw": {}}
    with pytest.raises(InfluxError, match=r"scales.quick.arms names 'sw'; .* Did you mean 'swa'"):
        Study.read("depth", node)


# ---------------------------------------------------------------------------------------------------------------- our three studies


@pytest.mark.parametrize("scale", ["quick", "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_a_job_of_every_arm_composes(name: str, scale: str) -> None:
    jobs = study(name).jobs(scale, seeds=1)
    for job in {job.arm: job for job in jobs}.values():
        config = composed(job.settings)
        assert config["seed"] == job.seed
        if job.arm != "convex":
            assert (config["dataset"]["test_index"], config["retraining"]["epochs"], config["retraining"]["start"]) == ([83], 7500, "warm")
            assert config["training"]["epochs"] == {"quick": 10_000, "paper": 60_000}[scale]


def test_the_three_studies_share_their_trained_and_retrained_models() -> None:
    """What the store's key is made of is equal wherever the network, the seed and the retrained layers are."""
    parts = ("dataset", "model", "training", "objective", "measurement", "retraining", "seed", "dtype")

    def deciding(name: str, arm: str, **at: Any) -> dict[str, Any]:
        jobs = [job for job in study(name).jobs("quick", seeds=1) if job.arm == arm and job.point == at]
        return {part: composed(jobs[0].settings)[part] for part in parts}

    for arm, other in (("published", "published"), ("matched", "matched")):
        for depth in (1, 8):
            causes = deciding("fragility_causes", other, network=f"depth {depth}, width 5")
            assert deciding("fragility_iris_depth", arm, **{"model.depth": depth}) == causes
        wide = deciding("fragility_causes", other, network="depth 1, width 50")
        assert deciding("fragility_iris_width", arm, **{"model.width": 50}) == wide


def fabricated(name: str, value: float, changes: dict[tuple[Any, ...], float]) -> pd.DataFrame:
    """Results with `value` everywhere, but where `changes` has (arm, level of the grid's axis or None, statistic or None)."""
    made = study(name)
    points = {(job.arm, *job.point.items()): job.point for job in made.jobs("quick", seeds=1)}
    held = [(key[0], point) for key, point in points.items()]
    arms = {compared: made.compare[compared].arms[0] for compared in made.compare}
    held += [(compared, point) for compared, arm in arms.items() for key, point in points.items() if key[0] == arm]
    switches = [f"mended: {write(mended, ORDER)}" for mended in subsets(ORDER)] + ["lost"]
    names = [*ORDER, "bias dropped", "float64"]
    switches += [f"{kind}: {x}" for kind in ("step", "first", "last", "share", "percent") for x in names]
    rows = []
    for arm, point in held:
        for statistic in switches if arm == "causes" else ["spearman"]:
            for seed, noise in enumerate((-0.002, 0.0, 0.002)):
                found = value
                for (an_arm, level, said), changed in changes.items():
                    if an_arm == arm and level in (None, *point.values()) and said in (None, statistic):
                        found = changed
                rows.append({"arm": arm, **point, "seed": seed, "statistic": statistic, "value": found + noise})
    return pd.DataFrame(rows)


GOOD: dict[str, tuple[float, dict[tuple[Any, ...], float]]] = {
    "fragility_iris_depth": (
        0.4,
        {("matched", None, None): 0.98, ("last_layer", 1, None): 0.9, ("published", 1, None): 0.7, ("ggn", 1, None): 0.9}
        | {("top_vs_all", 1, None): 0.95, ("swa", 1, None): 0.6},
    ),
    "fragility_iris_width": (0.5, {("matched", None, None): 0.99, ("published", 50, None): 0.0}),
    "fragility_causes": (
        0.5,
        {("convex", None, None): 0.99, ("causes", None, f"mended: {' + '.join(ORDER)}"): 0.99}
        | {("causes", NETWORKS[2], "share: weight decay"): 0.6, ("causes", None, "first: float64"): 0.0}
        | {("causes", None, "last: bias dropped"): 0.0},
    ),
}


def verdicts(name: str, results: pd.DataFrame) -> dict[str, str]:
    return {claim.claim: claim.judge(results, 3)[0]["verdict"] for claim in study(name).claims}


@pytest.mark.parametrize("name", NAMES)
def test_claims_hold_on_results_as_they_say(name: str) -> None:
    value, changes = GOOD[name]
    results = fabricated(name, value, changes)
    open_claims = set()
    if name == "fragility_iris_width":  # signs that cancel: six seeds are too few for the mean, and enough for the magnitude
        at = (results["arm"] == "published") & (results["model.width"] == 50)
        cancelling = [results[at].assign(value=0.52), results[at].assign(seed=lambda rows: rows["seed"] + 3, value=-0.5)]
        results, open_claims = pd.concat([results[~at], *cancelling]), {"E6b"}
    found = verdicts(name, results)
    assert {claim for claim, verdict in found.items() if verdict == "inconclusive"} == open_claims
    assert {claim for claim, verdict in found.items() if verdict == "reproduced"} == set(found) - open_claims


@pytest.mark.parametrize("name", NAMES)
def test_claims_fail_on_results_that_deny_them(name: str) -> None:
    """Everything 0.4: no estimate matches, no depth, width, weight decay or switch makes a difference."""
    found = verdicts(name, fabricated(name, 0.4, {}))
    denied = {
        "fragility_iris_depth": {"E2", "E3", "E3p", "E4", "E5a"},
        "fragility_iris_width": {"E6a", "E6b"},
        "fragility_causes": {"E1", "F1", "F4", "F5"},
    }
    assert {claim for claim, verdict in found.items() if verdict == "not reproduced"} == denied[name]


@pytest.mark.parametrize("name", NAMES)
def test_figures_draw_all_that_they_are_given(name: str, tmp_path: Path) -> None:
    made = study(name)
    results = fabricated(name, *GOOD[name])
    labels = {arm.name: arm.label for arm in made.arms.values()}
    made.figure.save(over_seeds(results), results, labels, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_waterfall_stands_where_the_correlations_are() -> None:
    """Bars begin where the switches before end, and the last one ends at the matched correlation."""
    figure = study("fragility_causes").figure
    assert isinstance(figure, Waterfall)
    stages = ["none", *(" + ".join(ORDER[:k]) for k in range(1, 4))]
    levels = dict(zip(stages, (0.1, 0.15, 0.7, 0.65), strict=True))
    changes: dict[tuple[Any, ...], float] = {("causes", None, f"mended: {said}"): value for said, value in levels.items()}
    changes[("causes", None, f"mended: {' + '.join(ORDER)}")] = 0.98
    results = fabricated("fragility_causes", 0.0, changes)
    with style():
        drawn = figure.draw(over_seeds(results), results, {})
    upper = drawn.axes[0]
    spans = sorted((bar.get_y(), *sorted((bar.get_x(), bar.get_x() + bar.get_width()))) for bar in upper.patches)
    assert [span[1:] for span in spans] == [
        pytest.approx(pair) for pair in ((0, 0.1), (0.1, 0.15), (0.15, 0.7), (0.65, 0.7), (0.65, 0.98), (0, 0.98))
    ]
    assert [ax.get_title(loc="left") for ax in drawn.axes[:3]] == NETWORKS
    said = {text.get_text() for ax in drawn.axes for text in ax.texts}
    assert {"0.10", "0.98"} <= said


def test_lines_break_where_an_arm_has_no_jobs() -> None:
    """SWA at one depth only: no line to the others; the last panel repeats a group in absolute values."""
    results = fabricated("fragility_iris_depth", -0.4, {("swa", 1, None): -0.3})
    with style():
        drawn = study("fragility_iris_depth").figure.draw(over_seeds(results), results, {})
    signed, absolute = drawn.axes[1].lines, drawn.axes[2].lines
    swa = next(line for line in signed if line.get_color() == absolute[2].get_color())
    assert swa.get_ydata() == pytest.approx([-0.3, math.nan, math.nan, math.nan], nan_ok=True)
    assert absolute[2].get_ydata() == pytest.approx([0.3, math.nan, math.nan, math.nan], nan_ok=True)
    assert [ax.get_title(loc="left") for ax in drawn.axes] == ["regular Hessian", "as published", "as published: |Spearman|"]
    assert [text.get_text() for text in drawn.axes[0].get_xticklabels()] == ["1", "2", "4", "8"]


def test_a_waterfall_without_results_is_empty_but_drawn() -> None:
    """As when all jobs of a study have failed."""
    figure = study("fragility_causes").figure
    results = fabricated("fragility_causes", 0.0, {}).iloc[:0]
    with style():
        drawn = figure.draw(over_seeds(results), results, {})
    assert all(not math.isfinite(bar.get_width()) or bar.get_width() == 0 for bar in drawn.axes[0].patches)
