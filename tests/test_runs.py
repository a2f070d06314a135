"""`influx.load`: what a finished run gives in a notebook, against its files read by hand."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY, Ran, Run, call
from safetensors.torch import load_file

import influx
from influx.errors import InfluxError

IRIS = ("dataset=iris", "model=logistic", "dataset.train_size=40", "dataset.test_size=8", "method=exact", "resamples=50", "store.dir=null")


def by_hand(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


def arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as found:
        return dict(found)


# ----------------------------------------------------------------------------------------------------------------- a run


def test_two_lines_give_tables_and_labelled_arrays(validated: Ran) -> None:
    run = influx.load(validated.folder)
    estimate, truth = arrays(validated.folder / "influence.npz"), arrays(validated.folder / "ground_truth.npz")
    np.testing.assert_array_equal(run.influence.to_numpy(), estimate["influence"])
    np.testing.assert_array_equal(run.influence.index, estimate["train_index"])
    np.testing.assert_array_equal(run.influence.columns, estimate["test_index"])
    assert (run.influence.index.name, run.influence.columns.name) == ("train_index", "test_index")
    np.testing.assert_allclose(run.change.to_numpy(), truth["change"].mean(2), rtol=1e-14)
    np.testing.assert_array_equal(run.change.index, truth["train_index"])
    np.testing.assert_array_equal(run.full.to_numpy(), truth["full"])
    assert list(run.full.columns) == truth["seed"].tolist()
    for k, seed in enumerate(truth["seed"]):
        np.testing.assert_array_equal(run.changes[seed].to_numpy(), truth["change"][:, :, k])


def test_predicted_and_change_line_up_to_the_tables_own_statistics(validated: Ran) -> None:
    run = influx.load(validated.folder)
    mean = run.predicted.corrwith(run.change, method="spearman").mean()
    pooled = np.corrcoef(run.predicted.stack(), run.change.stack())[0, 1]
    said = {row["statistic"]: float(row["value"]) for row in by_hand(validated.folder / "correlations.csv")}
    assert mean == pytest.approx(said["spearman"], abs=1e-12)
    assert pooled == pytest.approx(said["pearson_pooled"], abs=1e-12)
    assert run.headline["value"] == said["spearman"]


@pytest.mark.parametrize("name", ["correlations", "per_test", "top_influences", "history", "diagnostics", "class_influence"])
def test_a_table_is_its_file(validated: Ran, name: str) -> None:
    run = influx.load(str(validated.folder))
    table, rows = run.table(name), by_hand(validated.folder / f"{name}.csv")
    assert name in run.tables
    assert list(table.columns) == list(rows[0])
    for column in table:
        for mine, theirs in zip(table[column], rows, strict=True):
            said = theirs[column]
            assert pd.isna(mine) if said == "" else str(mine) == said or float(mine) == float(said)
    if name != "diagnostics" and name != "class_influence":
        pd.testing.assert_frame_equal(getattr(run, name), table)


def test_what_was_run(validated: Ran) -> None:
    run, record = influx.load(validated.folder), json.loads((validated.folder / "run.json").read_text())
    assert (run.command, run.status, run.finished) == ("validate", "finished", True)
    assert run.overrides == record["overrides"]
    assert run.choices["method"] == "cg"
    assert run.config == yaml.safe_load((validated.folder / ".hydra/config.yaml").read_text())
    assert run.seconds.to_dict() == record["stage_seconds"]


def test_parameters_are_those_that_were_saved(trained: Ran) -> None:
    saved = load_file(trained.folder / "model.safetensors")
    loaded = influx.load(trained.folder).parameters()
    assert {*loaded} == {*saved}
    assert all((loaded[name] == saved[name].numpy()).all() for name in saved)


@pytest.mark.parametrize(
    ("truth", "count"),
    [(("truth=subset", "retraining.subsets=6"), 6), (("truth=group", "retraining.groups=3", "retraining.group_size=4"), 3)],
)
def test_several_left_out_together(run_influx: Run, tmp_path: Path, truth: tuple[str, ...], count: int) -> None:
    ran = run_influx("validate", *IRIS, *truth, "retraining.seeds=2", cwd=tmp_path)
    run, found = influx.load(ran.folder), arrays(ran.folder / "ground_truth.npz")
    mask, influence = found["removed"], arrays(ran.folder / "influence.npz")["influence"]
    assert ran.status == 0, ran.err
    assert run.change.shape == (count, 8)
    assert run.change.index.name == "removal"
    np.testing.assert_array_equal(run.removed.to_numpy(), mask)
    np.testing.assert_array_equal(run.removed.columns, found["train_index"])
    summed = np.stack([influence[row].sum(0) for row in mask])
    np.testing.assert_allclose(run.predicted.to_numpy(), summed, rtol=1e-12, atol=1e-15)
    said = run.correlations.set_index("statistic")["value"]
    assert np.corrcoef(run.predicted.stack(), run.change.stack())[0, 1] == pytest.approx(said["pearson_pooled"], abs=1e-10)


def test_a_part_of_an_example_taken_out_scales_the_prediction(run_influx: Run, tmp_path: Path) -> None:
    strength = "retraining.strength=0.01"
    run = influx.load(run_influx("validate", *IRIS, "retraining.removed=all", strength, cwd=tmp_path).folder)
    np.testing.assert_allclose(run.predicted, 0.01 * run.influence.loc[run.change.index], rtol=1e-14)
    assert np.polyfit(run.predicted.to_numpy().ravel(), run.change.to_numpy().ravel(), 1)[0] == pytest.approx(1, abs=0.01)  # first order


def test_arrays_as_their_file_has_them(validated: Ran) -> None:
    found = influx.load(validated.folder).arrays("ground_truth")
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in arrays(validated.folder / "ground_truth.npz").items()
    }


def test_claims_of_a_reproduction(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"command": "reproduce", "status": "finished", "overrides": ["study=all"]}))
    (tmp_path / "claims.csv").write_text("claim,verdict\nA1,reproduced\nA2,inconclusive\n")
    (tmp_path / "weat").mkdir()
    (tmp_path / "weat/results.csv").write_text("a\n1\n")
    run = influx.load(tmp_path)
    assert run.claims.to_dict("list") == {"claim": ["A1", "A2"], "verdict": ["reproduced", "inconclusive"]}
    assert run.tables == ("claims", "weat/results")
    assert run.table("weat/results").a.tolist() == [1]


# --------------------------------------------------------------------------------------------- what is missing or damaged


@pytest.fixture
def run_copy(validated: Ran, tmp_path: Path) -> Path:
    return Path(shutil.copytree(validated.folder, tmp_path / "run"))


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("run.json", lambda run: run.record),
        (".hydra/config.yaml", lambda run: run.config),
        ("correlations.csv", lambda run: run.correlations),
        ("influence.npz", lambda run: run.influence),
        ("ground_truth.npz", lambda run: run.change),
        ("model.safetensors", lambda run: run.parameters()),
    ],
)
@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"{[:\n- a\n'"])
def test_a_damaged_file_is_one_line_that_names_it(run_copy: Path, file: str, read, content: bytes) -> None:
    (run_copy / file).write_bytes(content)
    if file.endswith(".csv") and content.startswith(b"{"):
        content = b"a,b\n1\n1,2,3,4\n"
        (run_copy / file).write_bytes(content)
    with pytest.raises(InfluxError, match=rf"run/{file} is damaged \(.+\): copy the folder again, or repeat the run\.$") as error:
        read(influx.load(run_copy))
    assert "\n" not in str(error.value)


def test_an_array_that_could_run_code_is_refused(run_copy: Path) -> None:
    np.savez(run_copy / "influence.npz", influence=np.array([print], object))
    with pytest.raises(InfluxError, match=r"influence\.npz is damaged \(Object arrays cannot be loaded"):
        _ = influx.load(run_copy).influence


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda run: run.table("correlation"), r"has no correlation\.csv; it has class_influence, correlations, .*\. Did you mean 'correl"),
        (lambda run: run.claims, r"has no claims\.csv; it has class_influence, correlations"),
        (
            lambda run: run.arrays("influences"),
            r"there are no arrays 'influences'; a run's are influence, ground_truth, responses\. Did you",
        ),
        (lambda run: run.arrays("responses"), r"has no responses\.npz: retraining\.keep=responses writes one when it finishes\.$"),
        (lambda run: run.removed, r"left out one example at a time: the rows of change say which\.$"),
    ],
)
def test_what_a_run_has_not_is_said(validated: Ran, read, message: str) -> None:
    with pytest.raises(InfluxError, match=message):
        read(influx.load(validated.folder))


def test_a_run_without_a_truth_or_a_model_says_who_makes_one(estimated: Ran, tmp_path: Path) -> None:
    run = influx.load(estimated.folder)
    assert run.headline is None
    with pytest.raises(InfluxError, match=r"has no ground_truth\.npz: influx validate \(with loo=true and no task\) writes one when it f"):
        _ = run.change
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(
        InfluxError, match=r"has no model\.safetensors: influx train keeps one\. This run has not finished \(failed: it ended"
    ):
        influx.load(tmp_path).parameters()


KILLED = """
import os, sys, influx.pipelines.validate as validate
validate._truth = lambda *_: os.kill(os.getpid(), 9)
from influx.cli import main
main()
"""


def test_a_run_killed_half_way_gives_what_it_had_and_says_why_not_more(tmp_path: Path) -> None:
    words = ("validate", *IRIS, "retraining.removed=4", "pictures=false", "hydra.run.dir=run")
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    run = influx.load(tmp_path / "run")
    assert killed.returncode == -9, killed.stderr
    assert (run.finished, run.status, run.headline) == (False, "unfinished: it is running, or was stopped", None)
    assert run.influence.shape == (40, 8)
    assert "train" in run.seconds
    with pytest.raises(InfluxError, match=r"This run has not finished \(unfinished: it is running, or was stopped\)\.$"):
        _ = run.correlations
    with pytest.raises(InfluxError, match=r"has no ground_truth\.npz: .* This run has not finished"):
        _ = run.change
    assert "unfinished: it is running" in run._repr_html_()


def test_a_folder_that_is_no_run(validated: Ran, tmp_path: Path) -> None:
    with pytest.raises(InfluxError, match=r"^there is no folder .*nowhere\.$"):
        influx.load(tmp_path / "nowhere")
    with pytest.raises(InfluxError, match=r"holds no run: a run folder has a run\.json, a sweep's a multirun\.yaml\.$"):
        influx.load(tmp_path)
    runs = validated.folder.parent
    with pytest.raises(InfluxError, match=rf"holds no run: .* The newest inside it is {re.escape(str(validated.folder))}\.$"):
        influx.load(runs)
    with pytest.raises(InfluxError, match=rf"run\.json is a file: give the folder that it is in, {re.escape(str(validated.folder))}\.$"):
        influx.load(validated.folder / "run.json")


def test_jobs_have_the_numbers_of_the_summary(tmp_path: Path) -> None:
    """Whatever their folders are called."""
    words = ("train", "-m", *TINY["train"], "seed=1,0", "hydra.sweep.dir=swept", "hydra.sweep.subdir=${seed}")
    assert call(*words, cwd=tmp_path).status == 0
    sweep = influx.load(tmp_path / "swept")
    assert isinstance(sweep, influx.Sweep)
    assert {job: sweep[job].record["seed"] for job in (0, 1)} == {0: 1, 1: 0}
    assert sweep.summary.set_index("job")["seed"].to_dict() == {0: 1, 1: 0}


def test_what_an_earlier_sweep_left_is_no_job(tmp_path: Path) -> None:
    for seeds in ("0,1,2", "5,6"):
        assert call("train", "-m", *TINY["train"], f"seed={seeds}", "hydra.sweep.dir=swept", cwd=tmp_path).status == 0
    sweep = influx.load(tmp_path / "swept")
    assert isinstance(sweep, influx.Sweep)
    assert [run.record["seed"] for run in sweep] == [5, 6]


def test_a_job_of_a_sweep_is_named_by_its_sweep(tmp_path: Path) -> None:
    job = tmp_path / "validate/sweeps/today/0"
    job.mkdir(parents=True)
    (job.parent / "multirun.yaml").write_text("")
    (job / "run.json").write_text("{}")
    with pytest.raises(InfluxError, match=rf"The newest inside it is {re.escape(str(job.parent))}\.$"):
        influx.load(tmp_path)


def test_what_is_loaded_is_read_when_it_is_asked_for() -> None:
    said = "import sys, influx; found = 'pandas' in sys.modules; influx.load; print(found, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


# --------------------------------------------------------------------------------------------------------------- a sweep


@pytest.fixture(scope="module")
def sweep(run_influx: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sweep")
    words = ("retraining.removed=4", "retraining.seeds=2", "dataset=iris,diabetes,wine", "hydra.sweep.dir=sweep")
    run_influx("validate", "-m", *IRIS[1:], *words, "seed=0,1", cwd=place)
    return place / "sweep"


def test_a_sweep_has_its_jobs_those_that_failed_among_them(sweep: Path) -> None:
    found = influx.load(sweep)
    assert len(found) == 6
    assert [run.path.name for run in found] == [str(job) for job in range(6)]
    assert [run.finished for run in found.runs] == [True, True, False, False, True, True]
    assert [*found.failed] == [2, 3]
    assert found.failed[2].startswith("failed: model=logistic is for classification")
    assert found[4].choices["dataset"] == "wine"
    assert found.swept.reset_index().to_dict("list") == {
        "job": [*range(6)],
        "dataset": ["iris", "iris", "diabetes", "diabetes", "wine", "wine"],
        "seed": ["0", "1"] * 3,
    }
    pd.testing.assert_frame_equal(found.summary, pd.read_csv(sweep / "summary.csv"))


def test_a_table_of_all_jobs(sweep: Path) -> None:
    found = influx.load(sweep)
    joined = found.table("per_test")
    assert list(joined.columns[:3]) == ["job", "dataset", "seed"]
    assert joined.groupby(["job", "dataset", "seed"], sort=False).size().to_dict() == {
        (0, "iris", "0"): 8, (1, "iris", "1"): 8, (4, "wine", "0"): 8, (5, "wine", "1"): 8,
    }  # fmt: skip
    mine = joined[joined["job"] == 5].drop(columns=["job", "dataset", "seed"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, found[5].per_test)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda sweep: sweep[9], r"has no job 9; it has 0, 1, 2, 3, 4, 5\.$"),
        (lambda sweep: sweep.table("per_tst"), r"no finished job of .*sweep has a per_tst\.csv; they have .*\. Did you mean 'per_test'\?$"),
    ],
)
def test_what_a_sweep_has_not_is_said(sweep: Path, read, message: str) -> None:
    with pytest.raises(InfluxError, match=message):
        read(influx.load(sweep))


def test_a_sweep_that_was_stopped_has_the_jobs_there_are(sweep: Path, tmp_path: Path) -> None:
    stopped = Path(shutil.copytree(sweep, tmp_path / "stopped"))
    (stopped / "summary.csv").unlink()
    (stopped / "5/run.json").unlink()  # killed between Hydra's files and ours
    found = influx.load(stopped)
    assert found.failed[5] == "failed: it ended before it began"
    assert (found[5].overrides, found[5].command) == ([*found[4].overrides[:-1], "seed=1"], "validate")
    with pytest.raises(InfluxError, match=r"has no summary\.csv: a sweep writes it when its last job ends; runs has the jobs there are\.$"):
        _ = found.summary


# ----------------------------------------------------------------------------------------------------------- in a notebook


def test_a_card_says_what_ran_and_what_came_out(validated: Ran) -> None:
    run = influx.load(validated.folder)
    card, value = run._repr_html_(), run.correlations.set_index("statistic")["value"]["spearman"]
    assert f"spearman {value:.3g} [" in card
    assert "noise ceiling" in card
    assert "<code>influx validate dataset.train_size=60" in card
    assert all(f"<code>{name}</code>" in card for name in run.tables)
    assert len(card) < 4000


def test_a_card_escapes_what_users_name(run_copy: Path) -> None:
    record = json.loads((run_copy / "run.json").read_text())
    record |= {"overrides": ["dataset=<script>"], "warnings": ["a <b>", "c"], "status": "failed: <i>"}
    (run_copy / "run.json").write_text(json.dumps(record))
    card = influx.load(run_copy)._repr_html_()
    assert "<script>" not in card
    assert "&lt;script&gt;" in card
    assert "a &lt;b&gt;<br>c" in card
    assert "failed: &lt;i&gt;" in card


def test_a_sweeps_card_lists_its_jobs(sweep: Path) -> None:
    card = influx.load(sweep)._repr_html_()
    assert "4 of 6 jobs finished" in card
    assert "<td>failed: model=logistic is for classification; this data set is for regression. Use model=linear.</td>" in card
    assert "<th>job</th><th>dataset</th><th>seed</th><th>status</th>" in card
    assert "<tr><td>4</td><td>wine</td><td>0</td><td>finished</td></tr>" in card
