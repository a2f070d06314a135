"""`influx validate truth=subset|group` end to end: what is printed, what the files hold, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Ran, Run
from scipy.stats import spearmanr
from sklearn.datasets import load_iris

IRIS = ("dataset=iris", "model=logistic", "dataset.train_size=40", "dataset.test_size=8", "retraining.seeds=2", "resamples=50")
TRUTHS = {
    "subset": ("truth=subset", "retraining.subsets=12", "retraining.fraction=0.7"),
    "random": ("truth=group", "retraining.groups=4", "retraining.group_size=5"),
    "top": ("truth=group", "retraining.selection=top", "retraining.groups=3", "retraining.group_size=5"),
    "loss": ("truth=group", "retraining.selection=loss", "retraining.groups=3", "retraining.group_size=5"),
    "class": ("truth=group", "retraining.selection=class", "retraining.group_size=null"),
    "of a class": ("truth=group", "retraining.selection=class", "retraining.groups=6", "retraining.group_size=4"),
}
SIZES = {"subset": 12, "random": 4, "top": 3, "loss": 3, "class": 3, "of a class": 6}


@pytest.fixture(scope="module")
def runs(run_influx: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    place = tmp_path_factory.mktemp("truths")
    made = {name: run_influx("validate", *IRIS, *words, cwd=place) for name, words in TRUTHS.items()}
    assert {name: ran.err for name, ran in made.items() if ran.status} == {}
    return made


def arrays(ran: Ran, name: str) -> dict[str, np.ndarray]:
    with np.load(ran.folder / name, allow_pickle=False) as file:
        return dict(file)


def statistics(ran: Ran) -> pd.DataFrame:
    return pd.read_csv(ran.folder / "correlations.csv").set_index("statistic")


@pytest.mark.parametrize("name", TRUTHS)
def test_the_files_say_which_examples_each_removal_leaves_out(runs: dict[str, Ran], name: str) -> None:
    saved, truth = arrays(runs[name], "influence.npz"), arrays(runs[name], "ground_truth.npz")
    count = SIZES[name]
    assert {key: (array.shape, str(array.dtype)) for key, array in truth.items()} == {
        "change": ((count, 8, 2), "float64"), "full": ((8, 2), "float64"), "seed": ((2,), "int64"),
        "test_index": ((8,), "int64"), "train_index": ((40,), "int64"), "removed": ((count, 40), "bool"),
    }  # fmt: skip
    assert truth["train_index"].tolist() == saved["train_index"].tolist()
    sizes = truth["removed"].sum(1).tolist()
    assert sizes == {"subset": [12] * 12, "random": [5] * 4, "of a class": [4] * 6}.get(name, sizes)
    if name != "subset":
        assert truth["removed"].sum(0).max() == 1  # disjoint
    labels = load_iris().target[truth["train_index"]]
    if "class" in name:
        assert all(len(set(labels[row])) == 1 for row in truth["removed"])
    if name == "class":
        assert truth["removed"].all(0).sum() == 0
        assert truth["removed"].any(0).all()
    if name == "top":
        order = np.argsort(-np.abs(saved["influence"]).mean(1), kind="stable")
        assert [set(np.flatnonzero(row)) for row in truth["removed"]] == [set(order[:5]), set(order[5:10]), set(order[10:15])]


@pytest.mark.parametrize("name", TRUTHS)
def test_the_tables_are_those_of_the_saved_arrays(runs: dict[str, Ran], name: str) -> None:
    """Prediction = Σ influence over what is left out; its Spearman with the mean over seeds, for each test example, and their mean."""
    saved, truth = arrays(runs[name], "influence.npz"), arrays(runs[name], "ground_truth.npz")
    predicted, actual = truth["removed"] @ saved["influence"], truth["change"].mean(2)
    wanted = [spearmanr(predicted[:, t], actual[:, t]).statistic for t in range(8)]
    each = pd.read_csv(runs[name].folder / "per_test.csv")
    assert each.test_index.tolist() == truth["test_index"].tolist()
    assert each.spearman.tolist() == pytest.approx(wanted, abs=1e-12)
    table = statistics(runs[name])
    assert table.value["spearman"] == pytest.approx(np.mean(wanted), abs=1e-12)
    assert table.value["rmse"] == pytest.approx(np.sqrt(np.mean((predicted - actual) ** 2)), rel=1e-9)
    assert set(table.n_removed) == {SIZES[name]}
    kind = "subset" if name == "subset" else "group"
    assert set(table.truth) == {f"{kind}_scratch"}
    assert json.loads((runs[name].folder / "run.json").read_text())["spearman"] == pytest.approx(np.mean(wanted), abs=1e-12)


@pytest.mark.parametrize("name", TRUTHS)
def test_the_screen_speaks_of_what_was_removed(runs: dict[str, Ran], name: str) -> None:
    said, count = runs[name].out, SIZES[name]
    kind = "subset" if name == "subset" else "group"
    how = f"on each of {count} random subsets" if kind == "subset" else f"without each of {count} groups"
    assert f"retraining {how}, 2 seed(s): about " in said
    assert f"{count} removed {kind}s, 8 test examples, 2 seeds" in said
    assert "removed example" not in said
    assert ("Linear datamodelling score (LDS: Spearman over subsets)" in said) == (kind == "subset")
    assert f"{count} removed groups are too few for the interval to be trusted" in said or kind == "subset"
    assert "retraining.removed" not in said


def test_the_change_of_a_subset_is_that_of_a_run_on_what_it_keeps(run_influx: Run, runs: dict[str, Ran], tmp_path: Path) -> None:
    """The data set cut down by its own knob, divisor n-1 in the truth: the two trainings never meet in the code."""
    settings = (*IRIS, *TRUTHS["subset"], "retraining.divisor=n-1", "retraining.subsets=2", "dataset.standardize=false")
    truth = arrays(run_influx("validate", *settings, cwd=tmp_path), "ground_truth.npz")
    for removed, change in zip(truth["removed"], truth["change"][..., 0], strict=True):
        kept = f"dataset.train_index={truth['train_index'][~removed].tolist()}".replace(" ", "")
        test = f"dataset.test_index={truth['test_index'].tolist()}".replace(" ", "")
        words = ("dataset=iris", "dataset.standardize=false", "model=logistic", kept, test)
        less = run_influx("validate", *words, "retraining.removed=1", "retraining.seeds=1", "resamples=50", cwd=tmp_path)
        # both within training.tolerance/λ of the optimum, 1e-9/0.02, times ‖∇m‖ of the raw features, up to ten
        np.testing.assert_allclose(arrays(less, "ground_truth.npz")["full"][:, 0], truth["full"][:, 0] + change, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("vary", "said"), [("init", "initialisation"), ("order", "batch order"), ("both", None)])
def test_what_alone_varied_is_said(tiny: Run, vary: str, said: str | None) -> None:
    ran = tiny("validate", f"retraining.vary={vary}", "training.batch_size=16")
    assert ran.status == 0, ran.err
    assert ("Only the " in ran.out) == (said is not None)
    assert said is None or f"Only the {said} varied between seeds: the ceiling is about that noise alone." in ran.out


@pytest.mark.parametrize("name", ["subset", "top", "class"])
def test_the_same_command_gives_the_same_bytes(run_influx: Run, runs: dict[str, Ran], tmp_path: Path, name: str) -> None:
    again = run_influx("validate", *IRIS, *TRUTHS[name], "store.dir=null", cwd=tmp_path)
    for file in ("influence.npz", "ground_truth.npz", "correlations.csv", "correlations.md", "per_test.csv"):
        assert (again.folder / file).read_bytes() == (runs[name].folder / file).read_bytes(), file


REFUSED = {
    "truth=group": r"retraining.groups=20 groups of retraining.group_size=10 need 200 training examples, .* there are 40",
    "truth=group retraining.group_size=null": "retraining.group_size=null (whole classes) needs retraining.selection=class",
    "truth=group retraining.selection=stratified": "truth=group has no retraining.selection=stratified: it must be one of random,",
    "truth=group retraining.index=[1]": "retraining.index is for truth=loo; truth=group draws what it leaves out",
    "truth=subset retraining.index=[1]": "retraining.index is for truth=loo; truth=subset draws what it leaves out",
    "truth=subset retraining.selection=top": "retraining.selection=top is not for truth=subset: its subsets are random",
    "truth=subset retraining.fraction=0.999": "retraining.fraction=0.999 keeps 40 of 40 training examples",
    "truth=loo retraining.selection=class": "retraining.selection=class needs truth=group",
    "truth=group dataset=diabetes model=linear retraining.selection=class": "retraining.selection=class needs labels; diabetes has numbers",
    "truth=subset retraining.vary=order": "retraining.vary=order needs a training in batches",
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_what_does_not_go_together_is_refused_before_training(run_influx: Run, tmp_path: Path, words: str) -> None:
    ran = run_influx("validate", *IRIS, *words.split(), cwd=tmp_path)
    line = ran.err.strip()
    assert ran.status == 2
    assert "\n" not in line
    assert all(part in line for part in REFUSED[words].split(" .* "))
    assert not list(tmp_path.rglob("model.safetensors"))
    assert not list((tmp_path / "outputs/store").rglob("*.safetensors"))


@pytest.mark.parametrize("word", ["truth=sbset", "retraining.fraction=1.5", "retraining.groups=0", "retraining.vary=nothing"])
def test_a_value_that_cannot_be_is_refused_before_a_folder_is_made(run_influx: Run, tmp_path: Path, word: str) -> None:
    ran = run_influx("validate", *IRIS, word, cwd=tmp_path)
    assert (ran.status, ran.folders) == (2, ())
    assert ran.err.startswith(f"influx: {word} is not possible: it must be ")
