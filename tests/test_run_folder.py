"""The run folder as a stable interface: its files, columns, shapes and types, and that the same command gives the same bytes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import Ran, Run
from safetensors.torch import load_file
from sklearn.datasets import load_digits, load_iris

from influx.store import digest

TRAINED = {".hydra", "run.json", "model.safetensors", "history.csv", "history.png"}
PICTURES = {"top_influences.png", "class_influence.png"}
ESTIMATED = TRAINED | PICTURES | {"influence.npz", "top_influences.csv", "class_influence.csv", "diagnostics.csv"}
VALIDATED = ESTIMATED | {"ground_truth.npz", "correlations.csv", "correlations.md", "per_test.csv", "scatter.png"}
SAME_BYTES = (
    "model.safetensors", "history.csv", "influence.npz", "ground_truth.npz", "correlations.csv", "per_test.csv", "top_influences.csv",
)  # fmt: skip


def arrays(ran: Ran, name: str) -> dict[str, np.ndarray]:
    with np.load(ran.folder / name, allow_pickle=False) as file:
        return dict(file)


def record(ran: Ran) -> dict[str, Any]:
    return json.loads((ran.folder / "run.json").read_text())


def table(ran: Ran, name: str) -> pd.DataFrame:
    return pd.read_csv(ran.folder / name)


def same_bytes(one: Ran, other: Ran) -> None:
    for name in SAME_BYTES:
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes(), name


# ------------------------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("finished", "files"),
    [("trained", TRAINED | {"train.log"}), ("estimated", ESTIMATED | {"estimate.log"}), ("validated", VALIDATED | {"validate.log"})],
)
def test_a_command_leaves_exactly_its_files(request: pytest.FixtureRequest, finished: str, files: set[str]) -> None:
    ran: Ran = request.getfixturevalue(finished)
    assert {file.name for file in ran.folder.iterdir()} == files
    assert {file.name for file in (ran.folder / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}


def test_pictures_are_pictures(validated: Ran) -> None:
    for name in ("history.png", "top_influences.png", "scatter.png"):
        assert (validated.folder / name).read_bytes().startswith(b"\x89PNG\r\n"), name


def test_the_screen_is_the_log(validated: Ran) -> None:
    logged = (validated.folder / "validate.log").read_text()
    assert all(line in logged for line in validated.out.splitlines())
    assert validated.err == ""


def test_the_screen_names_the_cost_before_the_work_and_the_picture_after(validated: Ran) -> None:
    lines = validated.out.splitlines()
    ahead = "retraining without each of 4 examples, 2 seed(s)"
    predicted = next(number for number, line in enumerate(lines) if line.startswith(ahead))
    assert lines[-2:] == [f"scatter plot: {validated.folder / 'scatter.png'}", f"results: {validated.folder}"]
    assert predicted < next(number for number, line in enumerate(lines) if "spearman" in line)


# ---------------------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("history.csv", ["epoch", "loss", "objective", "accuracy", "gradient_norm"]),
        ("top_influences.csv", ["test_index", "test_label", "kind", "rank", "train_index", "train_label", "influence"]),
        (
            "diagnostics.csv",
            ["kind", "name", "test_index", "iterations", "residual", "converged", "damping", "smallest_eigenvalue", "seconds"],
        ),
        (
            "correlations.csv",
            [
                "method", "truth", "measurement", "statistic", "value", "ci_low", "ci_high", "noise_ceiling",
                "n_removed", "n_test", "n_seeds", "n_undefined", "ceiling_low", "ceiling_high", "corrected", "corrected_low",
                "corrected_high", "this_model",
            ],
        ),
        (
            "per_test.csv",
            ["test_index", "pearson", "spearman", "ci_low", "ci_high", "reliability", "noise_ceiling", "corrected", "this_model"],
        ),
    ],
)  # fmt: skip
def test_columns(validated: Ran, name: str, columns: list[str]) -> None:
    assert list(table(validated, name).columns) == columns


def test_history_has_a_row_an_epoch(trained: Ran) -> None:
    history = table(trained, "history.csv")
    assert history.epoch.tolist() == [1, 2]
    weights = load_file(trained.folder / "model.safetensors")
    penalty = 0.5 * 0.001 * sum(value.square().sum().item() for value in weights.values())
    assert history.objective.iloc[-1] - history.loss.iloc[-1] == pytest.approx(penalty, rel=1e-9)


def test_diagnostics_have_a_row_a_solve_and_a_row_a_stage(validated: Ran) -> None:
    rows = table(validated, "diagnostics.csv")
    solves, stages = rows[rows.kind == "solve"], rows[rows.kind == "stage"]
    assert solves.test_index.tolist() == arrays(validated, "influence.npz")["test_index"].tolist()
    assert solves.converged.astype(str).tolist() == ["True"] * 8
    assert solves.residual.max() <= 1e-8
    assert set(solves.damping) == {0.001}  # weight decay and no damping
    assert dict(zip(stages.name, stages.seconds, strict=True)) == record(validated)["stage_seconds"]
    assert (stages.seconds >= 0).all()


def test_positions_in_diagnostics_are_whole_numbers(estimated: Ran) -> None:
    line = (estimated.folder / "diagnostics.csv").read_text().splitlines()[1].split(",")
    assert line[2] == str(arrays(estimated, "influence.npz")["test_index"][0])


def test_top_influences_are_the_extremes_of_the_matrix(validated: Ran) -> None:
    saved, shown = arrays(validated, "influence.npz"), table(validated, "top_influences.csv")
    digits = load_digits().target
    assert len(shown) == 8 * 2 * 5
    for t, position in enumerate(saved["test_index"]):
        column = pd.Series(saved["influence"][:, t], index=saved["train_index"])
        mine = shown[shown.test_index == position]
        helpful, harmful = (mine[mine.kind == kind].set_index("train_index").influence for kind in ("helpful", "harmful"))
        pd.testing.assert_series_equal(helpful, column.nlargest(5), check_names=False, check_index_type=False)
        pd.testing.assert_series_equal(harmful, column.nsmallest(5), check_names=False, check_index_type=False)
        assert (mine.test_label == digits[position]).all()
    assert (shown.train_label == digits[shown.train_index]).all()


def test_correlations_have_a_row_a_statistic(validated: Ran) -> None:
    rows = table(validated, "correlations.csv").set_index("statistic")
    assert list(rows.index[:3]) == ["pearson", "spearman", "kendall"]
    assert {"slope", "rmse", "sign_agreement"} <= set(rows.index)
    for column, said in {"method": "cg", "truth": "loo_scratch", "measurement": "loss", "n_removed": 4, "n_test": 8, "n_seeds": 2}.items():
        assert set(rows[column]) == {said}, column
    known = rows[["ci_low", "value", "ci_high"]].loc[["pearson", "spearman", "kendall"]]
    assert (known.ci_low <= known.value).all()
    assert (known.value <= known.ci_high).all()
    assert rows.noise_ceiling[["pearson", "spearman", "kendall"]].between(0, 1).all()


def test_correlations_are_those_of_the_saved_arrays(validated: Ran) -> None:
    saved, truth = arrays(validated, "influence.npz"), arrays(validated, "ground_truth.npz")
    rows = np.searchsorted(saved["train_index"], truth["train_index"])
    predicted, actual = saved["influence"][rows], truth["change"].mean(2)
    pearson = np.mean([np.corrcoef(predicted[:, t], actual[:, t])[0, 1] for t in range(8)])
    rmse = np.sqrt(np.mean((predicted - actual) ** 2))
    said = table(validated, "correlations.csv").set_index("statistic").value
    assert said["pearson"] == pytest.approx(pearson, rel=1e-9)
    assert said["rmse"] == pytest.approx(rmse, rel=1e-9)
    assert record(validated)["spearman"] == pytest.approx(said["spearman"], rel=1e-12)


# ----------------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_have_the_runs_type_and_the_sizes_it_states(tiny: Run, dtype: str) -> None:
    ran = tiny("validate", f"dtype={dtype}")
    assert ran.status == 0, ran.err
    saved, truth = arrays(ran, "influence.npz"), arrays(ran, "ground_truth.npz")
    assert {name: array.shape for name, array in saved.items()} == {"influence": (60, 8), "train_index": (60,), "test_index": (8,)}
    assert {name: array.shape for name, array in truth.items()} == {
        "change": (4, 8, 2), "full": (8, 2), "train_index": (4,), "test_index": (8,), "seed": (2,)
    }  # fmt: skip
    assert saved["influence"].dtype == dtype
    assert all(value.dtype == getattr(torch, dtype) for value in load_file(ran.folder / "model.safetensors").values())
    assert truth["seed"].tolist() == [0, 1]
    assert np.isfinite(truth["change"]).all()
    assert record(ran)["dtype"] == dtype


def test_the_two_types_agree_on_the_influence(tiny: Run) -> None:
    settings = ("model=logistic", "method=exact")
    one, other = (arrays(tiny("estimate", *settings, f"dtype={dtype}"), "influence.npz")["influence"] for dtype in ("float32", "float64"))
    np.testing.assert_allclose(one, other, atol=1e-3 * np.abs(other).max())


def test_positions_are_those_of_the_data_set(tiny: Run) -> None:
    ran = tiny("estimate", "dataset=iris", "model=logistic", "dataset.train_index=[0,60,149,3]", "dataset.test_index=[100,7]")
    saved, shown = arrays(ran, "influence.npz"), table(ran, "top_influences.csv")
    names = load_iris().target_names
    assert saved["train_index"].tolist() == [0, 60, 149, 3]
    assert saved["test_index"].tolist() == [100, 7]
    assert dict(zip(shown.train_index, shown.train_label, strict=True)) == {0: names[0], 60: names[1], 149: names[2], 3: names[0]}
    assert dict(zip(shown.test_index, shown.test_label, strict=True)) == {100: names[2], 7: names[0]}


def test_removed_examples_are_named_by_their_positions(tiny: Run, validated: Ran) -> None:
    train_index = arrays(validated, "influence.npz")["train_index"]
    chosen = [int(train_index[40]), int(train_index[2])]
    ran = tiny("validate", f"retraining.index={chosen}".replace(" ", ""))
    assert arrays(ran, "ground_truth.npz")["train_index"].tolist() == sorted(chosen)


def test_a_measurement_of_the_whole_set_has_one_column(tiny: Run) -> None:
    ran = tiny("validate", "measurement=mean_loss")
    each = tiny("validate")
    saved, truth = arrays(ran, "influence.npz"), arrays(ran, "ground_truth.npz")
    assert saved["influence"].shape == (60, 1)
    assert truth["change"].shape == (4, 1, 2)
    assert saved["test_index"].tolist() == truth["test_index"].tolist() == [-1]
    assert set(table(ran, "correlations.csv").n_test) == {1}
    assert set(table(ran, "top_influences.csv").test_label) == {"whole test set"}
    np.testing.assert_allclose(saved["influence"][:, 0], arrays(each, "influence.npz")["influence"].mean(1), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(truth["change"][:, 0], arrays(each, "ground_truth.npz")["change"].mean(1), rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------- run.json


def test_the_record_says_what_ran_where_and_how_long(validated: Ran) -> None:
    said = record(validated)
    config = yaml.safe_load((validated.folder / ".hydra/config.yaml").read_text())
    assert (said["command"], said["seed"], said["dtype"], said["status"]) == ("validate", 0, "float64", "finished")
    assert said["config_digest"] == digest({key: value for key, value in config.items() if key not in ("fresh", "logger")})  # of no number
    assert said["overrides"] == yaml.safe_load((validated.folder / ".hydra/overrides.yaml").read_text())
    assert {"python", "influx", "torch", "numpy", "hydra-core"} <= set(said["versions"])
    assert said["versions"]["torch"] == torch.__version__
    assert said["device"] in ("cpu", "cuda")
    assert said["threads"] == 1
    assert said["n_parameters"] == 64 * 32 + 32 + 32 * 10 + 10
    assert list(said["stage_seconds"]) == ["data", "train", "estimate", "predict", "retrain", "compare"]
    assert said["choices"]["method"] == "cg"
    assert (said["reused"], said["warnings"]) == ([], [])
    assert "git_commit" in said
    assert "started" in said


def test_threads_and_flipped_labels_are_recorded(tiny: Run) -> None:
    ran = tiny("estimate", "threads=2", "dataset.label_noise=0.05", "method=exact", "model.width=4")
    flipped = record(ran)["flipped_labels"]
    assert record(ran)["threads"] == 2
    assert len(flipped) == 3
    assert set(flipped) <= set(arrays(ran, "influence.npz")["train_index"].tolist())


def test_a_number_that_json_lacks_is_null(tiny: Run) -> None:
    ran = tiny("validate", "retraining.removed=1")  # one removal has no correlation
    assert json.loads((ran.folder / "run.json").read_text(), parse_constant=pytest.fail)["spearman"] is None


# -------------------------------------------------------------------------------------------------------- the same bytes


def test_a_second_run_reuses_and_gives_the_same_bytes(tiny: Run) -> None:
    first, second = tiny("validate"), tiny("validate")
    same_bytes(first, second)
    assert record(first)["reused"] == []
    assert record(second)["reused"] == ["model", "2 of 2 retraining shards"]


def test_the_same_command_elsewhere_gives_the_same_bytes_whatever_the_global_seed(tiny: Run, validated: Ran) -> None:
    torch.manual_seed(123)
    np.random.seed(456)  # noqa: NPY002 - the global state is what must not matter
    random.seed(789)
    again = tiny("validate", "store.dir=null")
    same_bytes(validated, again)
    assert record(again)["config_digest"] != record(validated)["config_digest"]  # store.dir differs
    assert not (again.folder.parents[2] / "store").exists()


def test_the_global_random_state_is_left_alone(tiny: Run) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy()  # noqa: NPY002
    tiny("validate")
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_another_seed_gives_another_model(tiny: Run, validated: Ran) -> None:
    other = tiny("validate", "seed=1")
    assert (other.folder / "model.safetensors").read_bytes() != (validated.folder / "model.safetensors").read_bytes()
    shared = arrays(other, "ground_truth.npz")["full"][:, 0], arrays(validated, "ground_truth.npz")["full"][:, 1]
    np.testing.assert_array_equal(*shared)  # seed 1 is the second seed of a run with seed 0


def test_the_number_of_models_at_once_does_not_matter(tiny: Run, validated: Ran) -> None:
    one_by_one = tiny("validate", "retraining.models_at_once=1")
    truths = [arrays(ran, "ground_truth.npz")["change"] for ran in (one_by_one, validated)]
    np.testing.assert_allclose(truths[0], truths[1], rtol=0, atol=1e-13)


# --------------------------------------------------------------------------------------------------------- kinds of truth


def test_without_retraining_nothing_says_whether_the_estimate_is_right(tiny: Run) -> None:
    ran = tiny("validate", "loo=false")
    assert ran.status == 0
    assert {file.name for file in ran.folder.iterdir()} == (ESTIMATED | {"validate.log"}) - {"history.png"} - PICTURES
    assert "loo=false: nothing was retrained" in ran.out
    assert "What can still be compared: " in ran.out
    assert list(record(ran)["stage_seconds"]) == ["data", "train", "estimate"]


def test_retraining_nothing_from_scratch_changes_nothing(validated: Ran) -> None:
    control = record(validated)["zero_removal_control"]
    in_stacks = control.pop("largest_measurement_change_in_stacks")
    assert set(control.values()) == {0.0}
    assert in_stacks < 1e-12  # float64 rounding of products of other shapes


def test_a_warm_start_drifts_and_the_drift_is_subtracted_on_request(tiny: Run) -> None:
    plain, subtracted = (tiny("validate", "retraining.start=warm", f"retraining.subtract_drift={flag}") for flag in ("false", "true"))
    one, other = arrays(plain, "ground_truth.npz"), arrays(subtracted, "ground_truth.npz")
    drift = other["full"] - one["full"]  # what retraining with nothing left out changes
    control = record(plain)["zero_removal_control"]
    assert np.abs(drift[:, 0]).max() == pytest.approx(control["largest_measurement_change"], rel=1e-9)
    assert control["largest_measurement_change"] > 1e-6
    assert control["largest_parameter_change"] > 1e-6
    np.testing.assert_allclose(one["change"] - other["change"], np.broadcast_to(drift, one["change"].shape), rtol=0, atol=1e-14)
    assert set(table(plain, "correlations.csv").truth) == {"loo_warm"}
    assert record(subtracted)["reused"] == ["model", "2 of 2 retraining shards"]


LAST_LAYER = ("retraining.start=warm", "retraining.trainable=last_layer", "method.params=last_layer")


def test_the_last_layer_alone_is_a_truth_of_its_own(tiny: Run) -> None:
    ran = tiny("validate", *LAST_LAYER, "retraining.subtract_drift=true")
    assert set(table(ran, "correlations.csv").truth) == {"loo_warm_last_layer"}
    assert record(ran)["warnings"] == []


def test_a_drift_as_large_as_the_changes_is_warned_of(tiny: Run) -> None:
    (said,) = record(tiny("validate", *LAST_LAYER))["warnings"]
    assert said.startswith("further training alone moves the measurement by ")
    assert said.endswith("retraining.subtract_drift=true takes it out.")


IMPRECISE = ("model=logistic", "training.max_iterations=1", "retraining.seeds=1")


def test_every_warning_of_retraining_is_on_the_screen_and_in_the_record(tiny: Run) -> None:
    ran = tiny("validate", *IMPRECISE)
    assert ran.err == ""
    assert len(record(ran)["warnings"]) == 3  # training, the one stack, the control
    assert all(f"warning: {warning}" in ran.out for warning in record(ran)["warnings"])


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes_and_the_same_warnings(tiny: Run, capfd: pytest.CaptureFixture[str]) -> None:
    two_stacks = ("retraining.models_at_once=2", "store.dir=null")
    alone, shared = (tiny("validate", *IMPRECISE, *two_stacks, f"retraining.workers={n}") for n in (1, 2))
    same_bytes(alone, shared)
    assert record(alone)["warnings"] == record(shared)["warnings"]
    assert capfd.readouterr().err == ""


def test_a_folder_used_again_holds_nothing_of_its_earlier_run(tiny: Run) -> None:
    chosen = tiny("validate", "hydra.run.dir=outputs/chosen").folder
    tiny("validate", "hydra.run.dir=outputs/chosen", "loo=false")
    assert not {file.name for file in chosen.iterdir()} & (VALIDATED - ESTIMATED)


@pytest.mark.parametrize("selection", ["random", "top", "loss", "stratified", "all"])
def test_selections_choose_among_the_training_examples(tiny: Run, validated: Ran, selection: str) -> None:
    ran = tiny("validate", f"retraining.selection={selection}", "retraining.seeds=1", "training.epochs=1")
    saved, chosen = arrays(ran, "influence.npz"), arrays(ran, "ground_truth.npz")["train_index"]
    mean = np.abs(saved["influence"]).mean(1)
    assert len(set(chosen)) == len(chosen) == (60 if selection == "all" else 4)
    assert set(chosen) <= set(saved["train_index"])
    if selection == "top":
        assert set(chosen) == set(saved["train_index"][np.argsort(-mean)[:4]])


def test_a_damaged_store_is_reported_and_repaired(tiny: Run, tmp_path: Path) -> None:
    first = tiny("validate")
    for entry in (tmp_path / "outputs/store").rglob("*.safetensors"):
        content = bytearray(entry.read_bytes())
        content[-1] ^= 1
        entry.write_bytes(content)
    second, third = tiny("validate"), tiny("validate")
    same_bytes(first, second)
    assert record(second)["reused"] == []
    assert sum("is damaged; it is removed and computed again" in warning for warning in record(second)["warnings"]) >= 3
    assert record(third)["reused"] == ["model", "2 of 2 retraining shards"]
