"""`influx validate truth=pbrf` and `retraining.response=...` end to end: files, tables, the screen, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Run

IRIS = (
    "dataset=iris", "dataset.train_size=40", "dataset.test_size=8", "model.width=4", "training.epochs=3", "method=exact",
    "method.damping=0.05", "retraining.removed=6", "retraining.seeds=2", "resamples=50",
)  # fmt: skip
NAMES = {
    "truth=pbrf": "pbrf",
    "retraining.response=proximal": "loo_proximal",
    "retraining.response=linear": "loo_linear",
    "retraining.response=linear solver@retraining.solver=lissa retraining.solver.depth=50": "loo_linear",
    "truth=group retraining.groups=3 retraining.group_size=4 retraining.response=pbrf": "group_pbrf",
    "truth=subset retraining.subsets=5 retraining.response=pbrf": "subset_pbrf",
    "truth=pbrf retraining.trainable=last_layer method.params=last_layer": "pbrf_last_layer",
}


@pytest.mark.parametrize("words", NAMES)
def test_every_response_is_a_truth_of_the_command_line(run_influx: Run, tmp_path: Path, words: str) -> None:
    ran = run_influx("validate", *IRIS, *words.split(), "retraining.keep=responses", cwd=tmp_path)
    assert ran.status == 0, ran.err
    table = pd.read_csv(ran.folder / "correlations.csv")
    assert set(table.truth) == {NAMES[words]}
    solves = pd.read_csv(ran.folder / "diagnostics.csv").query("kind == 'response'")
    with np.load(ran.folder / "ground_truth.npz") as truth, np.load(ran.folder / "responses.npz") as kept:
        removed, _, seeds = truth["change"].shape
        assert len(solves) == removed * seeds
        assert kept["outputs"].shape == (removed, 40, 3, seeds)
        assert kept["full_outputs"].shape == (40, 3, seeds)
        assert kept["parameters"].shape[::2] == (removed, seeds)
        assert np.array_equal(kept["train_index"], truth["train_index"])
        assert ("removed" in kept) == (NAMES[words].split("_")[0] in ("group", "subset"))
    record = json.loads((ran.folder / "run.json").read_text())
    response = NAMES[words].removeprefix("loo_").removeprefix("group_").removeprefix("subset_").removesuffix("_last_layer")
    assert f"{response} response" in ran.out
    assert ("label_dependence" in record.get("facts", {})) == (response == "pbrf")
    assert record["zero_removal_control"]["largest_parameter_change"] == 0 or response == "proximal"
    if NAMES[words] in ("pbrf", "loo_linear"):
        assert table.set_index("statistic").value["spearman"] > 0.9


@pytest.mark.parametrize("words", ["truth=pbrf retraining.strength=0.01", "retraining.response=linear retraining.strength=-0.01"])
def test_predictions_are_scaled_with_the_strength(run_influx: Run, tmp_path: Path, words: str) -> None:
    """In the limit of a small strength the estimate is the response's first order: slope 1."""
    ran = run_influx("validate", *IRIS, *words.split(), "retraining.seeds=1", cwd=tmp_path)
    table = pd.read_csv(ran.folder / "correlations.csv").set_index("statistic")
    assert table.value["slope"] == pytest.approx(1, abs=1e-2)  # of the order of the strength


def test_the_same_command_gives_the_same_bytes(run_influx: Run, tmp_path: Path) -> None:
    words = ("truth=pbrf", "retraining.keep=responses", "retraining.models_at_once=2")
    ran = [run_influx("validate", *IRIS, *words, *more, cwd=tmp_path) for more in ((), (), ("store.dir=null",))]
    assert "6 of 6 retraining shards" in json.loads((ran[1].folder / "run.json").read_text())["reused"]
    for name in ("ground_truth.npz", "responses.npz", "correlations.csv"):
        assert len({one.folder.joinpath(name).read_bytes() for one in ran}) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("truth=pbrf retraining.response=linear", "truth=pbrf means retraining.response=pbrf, not linear: use truth=loo, or leave it out."),
        (
            "truth=pbrf method=random",
            "method=random has no damping: retraining.response=pbrf needs retraining.proximity=<number>, say 0.01.",
        ),
        ("truth=pbrf method.damping=auto", "method=exact has method.damping=auto, which is no number yet: retraining.response=pbrf needs"),
        (
            "truth=pbrf method.damping=0 training.weight_decay=0",
            "retraining.response=pbrf has no single minimum with retraining.proximity=0",
        ),
        ("retraining.strength=0", "retraining.strength=0 is not possible: it must be a number above -1 and of at most 1, other than 0."),
        ("retraining.response=pbfr", "retraining.response=pbfr is not possible: it must be one of retrain, proximal, pbrf, linear."),
        (
            "solver@retraining.solver=lissa retraining.solver.depth=0",
            "retraining.solver.depth=0 is not possible: it must be a whole number of",
        ),
        ("retraining.solver=cg", "retraining.solver=cg is not possible: an option is chosen by solver@retraining.solver=cg."),
        ("memory=1MiB retraining.keep=responses retraining.removed=40 retraining.seeds=400", "retraining.keep=responses would hold "),
    ],
)
def test_what_does_not_go_together_is_one_line(run_influx: Run, tmp_path: Path, words: str, message: str) -> None:
    given = [word for word in IRIS if not (word.startswith("method.damping") and "method=random" in words)]
    ran = run_influx("validate", *given, *words.split(), cwd=tmp_path)
    assert ran.status == 2
    assert ran.err.startswith(f"influx: {message}"), ran.err
    assert "\n" not in ran.err.strip()
    assert not list(tmp_path.rglob("model.safetensors"))
