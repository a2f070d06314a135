"""Scores from a file: found by their index, or refused with one line before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import problems as P
import pytest
import torch

from influx.errors import InfluxError
from influx.estimators.external import External
from influx.measurements import MeanLoss
from influx.problem import Problem


def indexed() -> Problem:
    """With the data set's own positions, which are not 0, 1, 2, ..."""
    made = P.experiment("softmax")
    return made.problem(P.trained("softmax"), 0)


def arrays(problem: Problem, seed: int = 0) -> dict[str, np.ndarray]:
    scores = np.random.default_rng(seed).normal(size=(problem.n_train, problem.n_test))
    return {"influence": scores, "train_index": problem.train.index.numpy(), "test_index": problem.test.index.numpy()}


def saved(folder: Path, **parts: np.ndarray) -> str:
    np.savez(folder / "scores.npz", **parts)
    return str(folder / "scores.npz")


def test_rows_and_columns_are_found_by_their_index(tmp_path: Path) -> None:
    problem = indexed()
    given = arrays(problem)
    rows, columns = (np.random.default_rng(1).permutation(size) for size in given["influence"].shape)
    shuffled = {
        "influence": given["influence"][rows][:, columns],
        "train_index": given["train_index"][rows],
        "test_index": given["test_index"][columns],
    }
    path = saved(tmp_path, **shuffled)
    found = External(path).estimate(problem, None, 0).influence
    assert torch.equal(found, torch.from_numpy(given["influence"]))
    assert External(path).plan(problem, None).trainings == 0
    single = P.cast(problem, torch.float32)
    alike = replace(single, train=replace(single.train, index=problem.train.index), test=replace(single.test, index=problem.test.index))
    assert External(path).estimate(alike, None, 0).influence.dtype == torch.float32


def test_a_whole_sets_scores_are_one_column(tmp_path: Path) -> None:
    problem = replace(indexed(), measurement=MeanLoss())
    given = {**arrays(problem), "test_index": np.array([-1])}
    assert torch.equal(External(saved(tmp_path, **given)).estimate(problem, None, 0).influence, torch.from_numpy(given["influence"]))
    with pytest.raises(InfluxError, match=r"test_index lacks 1 of this run's 1 test examples, position -1 for one"):
        External(saved(tmp_path, **{**given, "test_index": np.array([3])})).plan(problem, None)


def test_without_positions_rows_count_from_zero(tmp_path: Path) -> None:
    problem = P.problem("ridge", torch.float32)  # has none
    scores = np.arange(problem.n_train * P.N_TEST).reshape(problem.n_train, P.N_TEST)
    path = saved(tmp_path, influence=scores, train_index=np.arange(problem.n_train), test_index=np.arange(P.N_TEST))
    assert torch.equal(External(path).estimate(problem, None, 0).influence, torch.from_numpy(scores).float())


def broken(given: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    scores, train, test = given.values()
    changed = {
        "missing row": {"influence": scores[1:], "train_index": train[1:]},
        "missing column": {"influence": scores[:, 2:], "test_index": test[2:]},
        "twice": {"train_index": np.where(train == train[1], train[0], train)},
        "foreign": {"influence": np.vstack([scores, scores[:1]]), "train_index": np.append(train, 100_000)},
        "shape": {"influence": scores[:, :-1]},
        "flat": {"influence": scores.ravel()},
        "transposed": {"influence": scores.T},
        "exchanged": {"influence": scores.T, "train_index": test, "test_index": train},
        "nan": {"influence": np.where(scores == scores[3, 2], np.nan, scores)},
        "words": {"influence": scores.astype(str)},
        "real index": {"train_index": train.astype(float)},
    }[kind]
    return {**given, **changed}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing row", r"train_index lacks 1 of this run's 45 training examples, position \d+ for one\."),
        ("missing column", r"test_index lacks 2 of this run's 6 test examples, position \d+ for one\."),
        ("twice", r"train_index lists position \d+ 2 times\."),
        ("foreign", r"train_index has 1 positions that are not among this run's training examples, 100000 for one\."),
        ("shape", r"influence has shape \[45, 5\], and its indices say \[n_train, n_test\] = \[45, 6\]\."),
        ("flat", r"influence has shape \[270\], and its indices say"),
        ("transposed", r"influence looks transposed: it is \[6, 45\], and its indices say \[n_train, n_test\] = \[45, 6\]\."),
        ("exchanged", r"it looks transposed: its train_index are this run's test examples, and the other way round\."),
        ("nan", r"1 of 270 scores are not finite\."),
        ("words", r"influence holds <U\d+, not numbers\."),
        ("real index", r"train_index must be a list of whole numbers"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, kind: str, said: str) -> None:
    problem = indexed()
    path = saved(tmp_path, **broken(arrays(problem), kind))
    with pytest.raises(InfluxError, match=said) as caught:
        External(path).plan(problem, None)
    assert str(caught.value).startswith(f"path={path}: ")
    assert "\n" not in str(caught.value)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    problem, place = indexed(), tmp_path / "scores.npz"
    with pytest.raises(InfluxError, match=r"method=external needs a file of scores: path=scores\.npz"):
        External().plan(problem, None)
    with pytest.raises(InfluxError, match=r"scores\.npz: there is no such file"):
        External(str(place)).plan(problem, None)
    place.write_text("influence,1,2")
    with pytest.raises(InfluxError, match=r"cannot be read as an \.npz file of plain numbers"):
        External(str(place)).plan(problem, None)
    np.savez(place, influence=np.array([{}]), train_index=np.arange(1), test_index=np.arange(1))  # would run code when loaded
    with pytest.raises(InfluxError, match=r"cannot be read as an \.npz file of plain numbers"):
        External(str(place)).plan(problem, None)
    np.savez(place, scores=np.zeros(3))
    with pytest.raises(InfluxError, match=r"it has no influence and no train_index and no test_index; it holds scores"):
        External(str(place)).plan(problem, None)
    with place.open("wb") as file:
        np.save(file, np.zeros((2, 2)))
    with pytest.raises(InfluxError, match=r"it is a single array; write one with numpy\.savez"):
        External(str(place)).plan(problem, None)


# ------------------------------------------------------------------------------------------------------ the command line


def correlations(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "correlations.csv").set_index("statistic")["value"]


def test_a_runs_own_scores_come_back_with_its_correlations(tiny, validated) -> None:
    scores = validated.folder / "influence.npz"
    ran = tiny("validate", "method=external", f"path={scores}", "method.calibrated=true")
    assert ran.status == 0, ran.err
    pd.testing.assert_series_equal(correlations(ran.folder), correlations(validated.folder))
    plain = tiny("validate", "method=external", f"method.path={scores}")
    assert {"slope", "rmse"} == {*correlations(ran.folder).index} - {*correlations(plain.folder).index}


def test_a_wrong_file_stops_before_training(tiny, validated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("influx.experiment.Experiment.train", lambda *_, **__: pytest.fail("trained"))
    absent = tiny("estimate", "method=external", "path=nowhere.npz")
    assert (absent.status, absent.err) == (2, "influx: path=nowhere.npz: there is no such file.\n")
    with np.load(validated.folder / "influence.npz") as file:
        path = saved(tmp_path, influence=file["influence"].T, train_index=file["train_index"], test_index=file["test_index"])
    turned = tiny("validate", "method=external", f"path={path}")
    assert turned.status == 2
    assert "influence looks transposed: it is [8, 60]" in turned.err
