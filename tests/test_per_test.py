"""The spread of an estimate's agreement over test examples, against SciPy and arithmetic by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from influx.errors import InfluxError
from influx.studies.per_test import PerTestAgreement

LABELS = {3: "a", 1: "b", 2: "a", 0: "b", 9: "b"}
CHANGE = np.random.default_rng(0).normal(size=(5, 4))
SCORES = CHANGE[[2, 0, 1, 4, 3]] + 0.5 * np.random.default_rng(1).normal(size=(5, 4))


def folders(place: Path, *, labels: bool = True, change: np.ndarray = CHANGE) -> dict[str, dict[int, Path]]:
    """An estimate and a truth of five removals, rows and columns in different orders, one more test example in the truth."""
    for arm in ("estimate", "truth"):
        (place / arm).mkdir(parents=True)
    np.savez(
        place / "estimate/influence.npz", influence=SCORES, train_index=np.array([30, 10, 20, 50, 40]), test_index=np.array([3, 1, 2, 0])
    )
    more = np.concatenate([change, np.ones((5, 1))], axis=1)[:, :, None]
    np.savez(
        place / "truth/ground_truth.npz",
        change=more, train_index=np.array([10, 20, 30, 40, 50]), test_index=np.array([3, 1, 2, 0, 9]), seed=np.array([6]),
    )  # fmt: skip
    if labels:
        lines = [f"{test},{label},helpful,{rank},1,a,0.5" for test, label in LABELS.items() for rank in (1, 2)]
        (place / "estimate/top_influences.csv").write_text(
            "\n".join(["test_index,test_label,kind,rank,train_index,train_label,influence", *lines]) + "\n"
        )
    return {arm: {6: place / arm} for arm in ("estimate", "truth")}


def values(agreement: PerTestAgreement, of: dict[str, dict[int, Path]]) -> dict[str, float]:
    rows = agreement.rows(of)
    assert {row["seed"] for row in rows} == {6}
    return {row["statistic"]: row["value"] for row in rows}


@pytest.mark.parametrize(("kind", "oracle"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr), ("kendall", stats.kendalltau)])
def test_means_spreads_and_shares_are_those_of_the_correlations(tmp_path, kind, oracle):
    r = np.array([oracle(SCORES[[1, 2, 0, 4, 3], t], CHANGE[:, t]).statistic for t in range(4)])
    made = values(PerTestAgreement("estimate", "truth", kind, (0.6, 0.95)), folders(tmp_path))
    wanted = {"mean": r.mean(), "spread": r.std(), "at least 0.6": (r >= 0.6).mean(), "at least 0.95": (r >= 0.95).mean()}
    for name, columns in (("a", [0, 2]), ("b", [1, 3])):
        wanted |= {f"mean: {name}": r[columns].mean(), f"spread: {name}": r[columns].std()}
    assert made == pytest.approx(wanted, abs=1e-12)  # correlations of five numbers, to rounding


def test_a_test_example_without_a_correlation_reaches_no_threshold_and_is_in_no_mean(tmp_path):
    change = CHANGE.copy()
    change[:, 0] = 0.25
    r = np.array([stats.pearsonr(SCORES[[1, 2, 0, 4, 3], t], change[:, t]).statistic for t in (1, 2, 3)])
    made = values(PerTestAgreement("estimate", "truth", thresholds=(-1.0,)), folders(tmp_path, change=change))
    assert made["at least -1"] == 0.75
    assert made["mean"] == pytest.approx(r.mean(), abs=1e-12)


def test_without_class_names_there_are_no_classes(tmp_path):
    assert set(values(PerTestAgreement("estimate", "truth"), folders(tmp_path, labels=False))) == {
        "mean", "spread", "at least 0.6", "at least 0.8"
    }  # fmt: skip


def test_a_truth_of_other_data_is_refused(tmp_path):
    of = folders(tmp_path)
    np.savez(
        tmp_path / "estimate/influence.npz", influence=SCORES[:3], train_index=np.array([30, 10, 20]), test_index=np.array([3, 1, 2, 0])
    )
    with pytest.raises(InfluxError, match="are not about the same data"):
        PerTestAgreement("estimate", "truth").rows(of)
