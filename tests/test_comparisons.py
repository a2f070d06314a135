"""Comparisons of jobs: two estimates of the same examples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from influx.errors import InfluxError
from influx.studies.comparisons import InfluenceAgreement, nearness
from influx.studies.finite_difference import FiniteDifference
from influx.studies.timing import Seconds


def write(folder: Path, influence: np.ndarray, rows: list[int], tests: list[int]) -> Path:
    folder.mkdir(parents=True)
    np.savez(folder / "influence.npz", influence=influence, train_index=np.array(rows), test_index=np.array(tests))
    return folder


def test_two_estimates_are_compared_over_the_examples_that_both_have(tmp_path: Path) -> None:
    """Rows and columns in other orders, and more of them than the other has; each statistic as its definition, to rounding."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(5, 3)), rng.normal(size=(4, 2))
    folders = {
        "first": {7: write(tmp_path / "first", first, [50, 10, 20, 40, 30], [3, 1, 2])},
        "second": {7: write(tmp_path / "second", second, [10, 20, 30, 40], [1, 2])},
    }
    made = {row["statistic"]: row["value"] for row in InfluenceAgreement("first", "second").rows(folders)}
    a, b = first[np.ix_([1, 2, 4, 3], [1, 2])], second
    assert made["pearson"] == pytest.approx(np.mean([stats.pearsonr(a[:, t], b[:, t]).statistic for t in range(2)]), rel=1e-12)
    assert made["spearman"] == pytest.approx(np.mean([stats.spearmanr(a[:, t], b[:, t]).statistic for t in range(2)]), rel=1e-12)
    assert made["sign_disagreement"] == np.mean([np.sign(x) != np.sign(y) for x, y in zip(a.ravel(), b.ravel(), strict=True)])
    assert made["relative_distance"] == pytest.approx(np.sqrt(((a - b) ** 2).sum() / (b**2).sum()), rel=1e-12)
    errors = [abs(x - y) / abs(y) for x, y in zip(a.ravel(), b.ravel(), strict=True) if x * y > 0]
    assert made["relative_error_same_sign"] == pytest.approx(np.mean(errors), rel=1e-12)


def test_an_estimate_is_itself(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(6, 2))
    made = nearness(values, values)
    assert made == pytest.approx(
        {"pearson": 1, "spearman": 1, "sign_disagreement": 0, "relative_distance": 0, "relative_error_same_sign": 0}, abs=1e-12
    )


def test_what_has_no_value_has_no_row(tmp_path: Path) -> None:
    """Zeros have no correlation and no relative error; their signs differ from everything that is not zero."""
    folders = {
        "first": {0: write(tmp_path / "first", np.ones((4, 1)), [1, 2, 3, 4], [0])},
        "second": {0: write(tmp_path / "second", np.zeros((4, 1)), [1, 2, 3, 4], [0])},
    }
    assert InfluenceAgreement("first", "second").rows(folders) == [{"seed": 0, "statistic": "sign_disagreement", "value": 1.0}]


def test_seconds_are_those_of_the_stage_and_their_ratio(tmp_path: Path) -> None:
    folders: dict[str, dict[int, Path]] = {"slow": {}, "fast": {}}
    for arm, seed, value in (("slow", 1, 6.0), ("slow", 2, 9.0), ("fast", 2, 3.0)):
        folders[arm][seed] = tmp_path / f"{arm}{seed}"
        folders[arm][seed].mkdir()
        (folders[arm][seed] / "run.json").write_text(json.dumps({"stage_seconds": {"train": 1.0, "estimate": value}}))
    assert Seconds("slow").rows(folders) == [
        {"seed": 1, "statistic": "seconds", "value": 6.0}, {"seed": 2, "statistic": "seconds", "value": 9.0}
    ]  # fmt: skip
    assert Seconds("slow", over="fast").rows(folders) == [
        {"seed": 2, "statistic": "seconds", "value": 9.0}, {"seed": 2, "statistic": "ratio", "value": 3.0}
    ]  # fmt: skip


def test_a_finite_difference_of_a_cubic_is_its_derivative_up_to_the_cube(tmp_path: Path) -> None:
    """Δ(s) = as + bs² + cs³: (Δ(s) − Δ(−s)) / 2s = a + cs², so that the error against a is cs²/a, and against 1.01 a about 0.01."""
    rng, s = np.random.default_rng(2), 1e-2
    a, b, c = rng.normal(size=(3, 4, 2))
    folders: dict[str, dict[int, Path]] = {}
    for arm, x, scores in (("plus", s, a), ("minus", -s, a), ("wrong", s, 1.01 * a)):
        folders[arm] = {0: write(tmp_path / arm, scores, [4, 2, 3, 1], [0, 1])}
        change = (a * x + b * x**2 + c * x**3)[[2, 0, 1]]
        np.savez(folders[arm][0] / "ground_truth.npz", change=change[:, :, None], train_index=np.array([3, 4, 2]), test_index=np.arange(2))
    removed, cubic = a[[2, 0, 1]], c[[2, 0, 1]]
    found = FiniteDifference("plus", "minus", s).rows(folders)[0]["value"]
    assert found == pytest.approx(s**2 * np.linalg.norm(cubic) / np.linalg.norm(removed), rel=1e-9)
    wrong = FiniteDifference("wrong", "minus", s).rows(folders)[0]["value"]
    assert wrong == pytest.approx(np.linalg.norm(s**2 * cubic - 0.01 * removed) / np.linalg.norm(1.01 * removed), rel=1e-9)
    np.savez(
        folders["minus"][0] / "ground_truth.npz", change=np.zeros((1, 2, 1)), train_index=np.array([3]), test_index=np.arange(2)
    )  # fmt: skip
    with pytest.raises(InfluxError, match="arms plus and minus have left out different examples: give both the same selection"):
        FiniteDifference("plus", "minus", s).rows(folders)
