"""The PBRF studies: distances along the chain against their definition, verdicts on fabricated results, figures, and that jobs compose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scipy import stats

from influx import rules
from influx.errors import InfluxError
from influx.studies import Study
from influx.studies.claims import OPEN, REPRODUCED
from influx.studies.comparisons import EstimateAgreement, SeedAgreement
from influx.studies.gaps import Derivative, Gaps, Responses
from influx.studies.results import over_seeds

CONF = Path(__file__).parents[1] / "conf"
NAMES = ("pbrf_decomposition", "pbrf_validation")
ARMS = ("cold", "warm", "proximal", "pbrf", "linear", "lissa")
STEPS = ("warm_start", "proximity", "non_convergence", "linearisation", "solver")
N_TRAIN, OUT, P = 7, 2, 5


def study(name: str) -> Study:
    return Study.read(name, yaml.safe_load((CONF / "study" / f"{name}.yaml").read_text()))


def write(folder: Path, outputs: np.ndarray, parameters: np.ndarray, full: np.ndarray, rows: list[int]) -> Path:
    """A run folder with the responses of one seed."""
    folder.mkdir(parents=True)
    np.savez(
        folder / "responses.npz", outputs=outputs[..., None], parameters=parameters[..., None], full_parameters=full[..., None],
        train_index=np.array(rows), seed=np.array([0]),
    )  # fmt: skip
    return folder


def chain(place: Path, rng: np.random.Generator, rows: dict[str, list[int]] | None = None) -> tuple[dict[str, dict[int, Path]], dict]:
    """Six arms' folders of one seed, and the arrays by arm and removed example."""
    folders, held = {}, {}
    for arm in ARMS:
        mine = (rows or {}).get(arm, [3, 11, 40])
        outputs, parameters = rng.normal(size=(len(mine), N_TRAIN, OUT)), rng.normal(size=(len(mine), P))
        folders[arm] = {0: write(place / arm, outputs, parameters, np.zeros(P), mine)}
        held[arm] = {row: (outputs[at], parameters[at]) for at, row in enumerate(mine)}
    return folders, held


def found(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {row["statistic"]: row["value"] for row in rows}


# ------------------------------------------------------------------------------------------------------------ distances


def test_gaps_are_the_definitions_written_out(tmp_path: Path) -> None:
    """One loop a removal, straight from the formula; equal to rounding."""
    folders, held = chain(tmp_path, np.random.default_rng(0))
    made = found(Gaps(ARMS).rows(folders))
    for name, a, b in zip(STEPS, ARMS[:-1], ARMS[1:], strict=True):
        outputs = [np.sqrt(np.mean((held[a][row][0] - held[b][row][0]) ** 2)) for row in (3, 11, 40)]
        parameters = [np.sqrt(np.sum((held[a][row][1] - held[b][row][1]) ** 2)) for row in (3, 11, 40)]
        assert made[f"output_{name}"] == pytest.approx(np.mean(outputs), rel=1e-12)
        assert made[f"parameter_{name}"] == pytest.approx(np.mean(parameters), rel=1e-12)
    for kind in ("output", "parameter"):
        steps = [made[f"{kind}_{name}"] for name in STEPS]
        assert made[f"{kind}_gaps"] == pytest.approx(sum(steps[:3]), rel=1e-12)
        assert made[f"{kind}_errors"] == pytest.approx(sum(steps[3:]), rel=1e-12)
        assert made[f"{kind}_errors_over_gaps"] == pytest.approx(sum(steps[3:]) / sum(steps[:3]), rel=1e-12)
        assert made[f"{kind}_total"] <= made[f"{kind}_sum"]  # the triangle inequality


def test_gaps_match_removals_by_their_index_not_by_their_place(tmp_path: Path) -> None:
    folders, held = chain(tmp_path, np.random.default_rng(1), {"warm": [40, 3, 99], "pbrf": [11, 40, 3]})
    expected = np.mean([np.linalg.norm(held["cold"][row][1] - held["warm"][row][1]) for row in (3, 40)])  # what all six have
    assert found(Gaps(ARMS).rows(folders))["parameter_warm_start"] == pytest.approx(expected, rel=1e-12)


def test_a_seed_that_lacks_an_arm_has_no_row(tmp_path: Path) -> None:
    folders, _ = chain(tmp_path, np.random.default_rng(2))
    folders["cold"][1] = folders["cold"][0]
    assert {row["seed"] for row in Gaps(ARMS).rows(folders)} == {0}


def test_objects_that_are_the_same_have_no_ratio(tmp_path: Path) -> None:
    folders, _ = chain(tmp_path, np.random.default_rng(3))
    made = found(Gaps(["cold"] * 6).rows(folders))
    assert made["output_sum"] == 0
    assert "output_errors_over_gaps" not in made


def test_the_derivative_of_a_quadratic_response_is_found_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    """θ(ε) = θ_s + ε a + ε² b: the central difference is exact, so that the error is rounding, or what `linear` is wrong by."""
    rng, strength = np.random.default_rng(4), 1e-3
    start, a, b = rng.normal(size=P), rng.normal(size=(2, P)), rng.normal(size=(2, P))
    arms = {"plus": strength, "minus": -strength}
    folders = {
        name: {0: write(tmp_path / name, np.zeros((2, N_TRAIN, OUT)), start + e * a + e**2 * b, start, [1, 2])} for name, e in arms.items()
    }
    folders["linear"] = {0: write(tmp_path / "linear", np.zeros((2, N_TRAIN, OUT)), start + strength * a, start, [1, 2])}
    folders["wrong"] = {0: write(tmp_path / "wrong", np.zeros((2, N_TRAIN, OUT)), start + 1.01 * strength * a, start, [1, 2])}
    right = found(Derivative("plus", "minus", "linear").rows(folders))["derivative_error"]
    wrong = found(Derivative("plus", "minus", "wrong").rows(folders))["derivative_error"]
    assert right < 1e-11  # parameters of size 1 rounded at 1e-16, over steps of 1e-3
    assert wrong == pytest.approx(0.01 / 1.01, rel=1e-6)


def test_gaps_needs_six_arms() -> None:
    with pytest.raises(InfluxError, match=r"Gaps needs six arms, from cold start to practical estimate; it has 2"):
        Gaps(["a", "b"])


def test_missing_responses_are_refused_with_the_setting_that_keeps_them(tmp_path: Path) -> None:
    with pytest.raises(InfluxError, match=r"responses\.npz is not there: set retraining\.keep=responses"):
        Responses.read(tmp_path, 0)


# --------------------------------------------------------------------------------------------------------------- claims


def fabricated(level: dict[str, float]) -> pd.DataFrame:
    """Results of the decomposition in which everything that is claimed holds; `level` overrides a statistic `arm/statistic/setting`."""
    made = []
    gaps = {
        "base": (2.1, 1.0, 1.2), "epochs_10": (0.9, 0.9, 1.7), "epochs_120": (0.3, 0.2, 0.1), "decay_1e-5": (3.0, 1.6, 1.4),
        "decay_1e-2": (0.3, 0.2, 0.3), "damping_1e-3": (2.1, 0.3, 2.2), "damping_1e-1": (2.1, 1.9, 0.3), "width_4": (0.3, 0.1, 0.2),
        "width_32": (2.8, 1.3, 1.5),
    }  # fmt: skip
    for setting in study("pbrf_decomposition").grid["setting"]:
        linear = {"damping_1e-3": 0.03, "damping_1e-1": 0.002}.get(setting, 0.007)
        numbers: dict[str, float] = {f"distances/output_{name}": x for name, x in zip(STEPS, gaps.get(setting, (1, 1, 1)), strict=False)}
        numbers |= {"distances/output_linearisation": linear, "distances/output_solver": 0.005, "distances/output_errors_over_gaps": 0.01}
        numbers |= {"distances/own_errors_over_gaps": 0.05, "distances_lissa/output_errors_over_gaps": 0.02}
        numbers |= {f"{arm}/spearman": 0.95 for arm in ("with_warm", "with_proximal", "pbrf", "with_linear")}
        numbers |= {"with_cold/spearman": {"logistic": 0.9, "decay_1e-2": 0.6}.get(setting, 0.2), "seeds/spearman": 0.3}
        for name, number in numbers.items():
            arm, statistic = name.split("/")
            value = level.get(f"{name}/{setting}", number)
            made += [
                {"arm": arm, "setting": setting, "seed": seed, "statistic": statistic, "value": value * (1 + 0.001 * (-1) ** seed)}
                for seed in range(4)
            ]
    return pd.DataFrame(made)


def verdicts(level: dict[str, float]) -> dict[str, str]:
    results = fabricated(level)
    return {claim.claim: claim.judge(results, 2)[0]["verdict"] for claim in study("pbrf_decomposition").claims}


def test_every_claim_holds_on_results_in_which_it_should() -> None:
    assert set(verdicts({}).values()) == {REPRODUCED}


@pytest.mark.parametrize(
    ("where", "value", "claim"),
    [
        ("distances/output_errors_over_gaps/width_32", 0.2, "B1"),
        ("distances_lissa/output_errors_over_gaps/base", 0.2, "B1b"),
        ("distances/own_errors_over_gaps/damping_1e-3", 0.15, "B1c"),
        ("pbrf/spearman/width_4", 0.85, "B2"),
        ("pbrf/spearman/damping_1e-3", 0.7, "B2b"),
        ("with_cold/spearman/base", 0.9, "B3"),
        ("with_cold/spearman/logistic", 0.8, "B4"),
        ("distances/output_non_convergence/epochs_120", 1.5, "B5"),
        ("distances/output_linearisation/damping_1e-1", 0.02, "B6"),
        ("distances/output_warm_start/decay_1e-2", 4.0, "B8"),
        ("distances/output_proximity/width_4", 4.0, "B9"),
        ("seeds/spearman/base", 0.7, "N1"),
    ],
)
def test_each_claim_fails_where_it_should(where: str, value: float, claim: str) -> None:
    assert verdicts({where: value})[claim] == "not reproduced"


def test_a_claim_without_results_is_open() -> None:
    results = fabricated({})
    for claim in study("pbrf_decomposition").claims:
        assert claim.judge(results[results["arm"] == "none"], 2)[0]["verdict"] == OPEN


# ------------------------------------------------------------------------------------------------- agreement, seed by seed

TESTS, SEEDS = [7, 2, 9], [4, 5]


def truth(folder: Path, change: np.ndarray, rows: list[int], members: np.ndarray | None = None, seeds: tuple[int, ...] = SEEDS) -> Path:
    """A run folder with a truth of some seeds."""
    folder.mkdir(parents=True)
    more = {} if members is None else {"removed": members}
    np.savez(
        folder / "ground_truth.npz", change=change, train_index=np.array(rows), test_index=np.array(TESTS), seed=np.array(seeds), **more
    )
    return folder


def estimate(folder: Path, influence: np.ndarray, rows: list[int], tests: list[int]) -> Path:
    folder.mkdir(parents=True)
    np.savez(folder / "influence.npz", influence=influence, train_index=np.array(rows), test_index=np.array(tests))
    return folder


def by_hand(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """SciPy's correlations, mean over the columns."""
    both = list(zip(first.T, second.T, strict=True))
    return {
        "pearson": float(np.mean([stats.pearsonr(a, b).statistic for a, b in both])),
        "spearman": float(np.mean([stats.spearmanr(a, b).statistic for a, b in both])),
    }


def test_an_estimate_is_held_against_its_own_seeds_column_of_single_removals(tmp_path: Path) -> None:
    """Rows and test examples in another order than the truth's, more of them than it has."""
    rng = np.random.default_rng(5)
    removed, trained, tests = [30, 10, 20, 50], [10, 20, 30, 40, 50], [9, 2, 7, 1]
    change = rng.normal(size=(4, 3, 2))
    folders: dict[str, dict[int, Path]] = {"truth": {}, "estimate": {}}
    held = truth(tmp_path / "truth", change, removed)
    expected = {}
    for column, seed in enumerate(SEEDS):
        influence = rng.normal(size=(5, 4))
        folders["truth"][seed] = held
        folders["estimate"][seed] = estimate(tmp_path / str(seed), influence, trained, tests)
        mine = influence[np.ix_([trained.index(row) for row in removed], [tests.index(test) for test in TESTS])]
        expected |= {(seed, kind): value for kind, value in by_hand(mine, change[:, :, column]).items()}
    made = {(row["seed"], row["statistic"]): row["value"] for row in EstimateAgreement("estimate", "truth").rows(folders)}
    assert made == pytest.approx(expected, rel=1e-12)


def test_the_prediction_for_a_group_is_the_sum_of_its_members(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    members, change, influence = rng.random((4, 6)) < 0.5, rng.normal(size=(4, 3, 1)), rng.normal(size=(6, 3))
    rows = [3, 1, 4, 15, 9, 2]
    held = truth(tmp_path / "truth", change, rows, members, seeds=(4,))
    folders = {"truth": {4: held}, "estimate": {4: estimate(tmp_path / "estimate", influence, rows, TESTS)}}
    predicted = np.array([sum((influence[i] for i in np.flatnonzero(group)), np.zeros(3)) for group in members])
    assert found(EstimateAgreement("estimate", "truth").rows(folders)) == pytest.approx(by_hand(predicted, change[:, :, 0]), rel=1e-12)


def test_a_truth_is_held_against_its_other_seeds(tmp_path: Path) -> None:
    change = np.random.default_rng(7).normal(size=(5, 3, 3))
    held = truth(tmp_path / "truth", change, [1, 2, 3, 4, 5], seeds=(4, 5, 6))
    made = pd.DataFrame(SeedAgreement("truth").rows({"truth": dict.fromkeys((4, 5, 6), held)}))
    pairs = [by_hand(change[:, :, a], change[:, :, b]) for a in range(3) for b in range(a)]
    for kind, values in made.groupby("statistic")["value"]:  # pseudo-values, whose mean is that of the pairs
        assert values.mean() == pytest.approx(np.mean([pair[kind] for pair in pairs]), rel=1e-12)


def test_one_seed_has_nothing_to_agree_with(tmp_path: Path) -> None:
    held = truth(tmp_path / "truth", np.ones((5, 3, 2)), [1, 2, 3, 4, 5])
    assert SeedAgreement("truth").rows({"truth": {4: held}}) == []


# ----------------------------------------------------------------------------------------------------------------- jobs


def test_an_arm_with_all_seeds_together_is_one_job_a_point() -> None:
    jobs = study("pbrf_decomposition").jobs("quick", seeds=3, first_seed=2)
    cold = [job for job in jobs if job.arm == "cold" and job.point == {"setting": "base"}]
    assert [(job.seed, job.seeds, job.place) for job in cold] == [(2, (2, 3, 4), "cold/setting=base/seeds=2-4")]
    assert cold[0].settings[-2:] == ("seed=2", "retraining.seeds=3")
    alone = [job for job in jobs if job.arm == "pbrf" and job.point == {"setting": "base"}]
    assert [(job.seeds, job.place) for job in alone] == [((seed,), f"pbrf/setting=base/seed={seed}") for seed in (2, 3, 4)]
    assert all("retraining.seeds=3" not in job.settings for job in alone)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_jobs_compose(name: str, scale: str) -> None:
    """Each arm once and each grid point once, composed as on the command line, and accepted by the rules."""
    jobs = study(name).jobs(scale, seeds=1)
    few = {job.arm: job for job in jobs} | {str(job.point): job for job in jobs}
    with initialize_config_dir(str(CONF), version_base=None):
        for job in few.values():
            config = OmegaConf.to_container(compose("validate", list(job.settings)), resolve=True)
            rules.check_config({key: value for key, value in config.items() if key not in ("hydra", "experiment")})


# -------------------------------------------------------------------------------------------------------------- figures


def test_the_figure_draws_whatever_settings_there_are(tmp_path: Path) -> None:
    figure, results = study("pbrf_decomposition").figure, fabricated({})
    for part in (results, results[results["setting"].isin(["base", "logistic"])], results[results["arm"] == "with_cold"]):
        figure.save(over_seeds(part), part, {}, tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 10_000
