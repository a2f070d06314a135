"""A sweep's jobs through each engine: the same table, one failing job costs itself, and nothing is trained twice."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY, Ran, call
from omegaconf import DictConfig, OmegaConf

import influx
from influx import app, launching

SETTINGS = (*(word for word in TINY["validate"] if not word.startswith("resamples")), "resamples=20", "pictures=false")
ASKED = ("method=loss,random,nosuch", "seed=0,-1")  # three cannot be: two have no such method, one more has no such seed
FINISHED, FAILED = {0, 2}, {1, 3, 4, 5}
SEARCH = ("hydra/sweeper=optuna_damping", "dataset=iris", "model=logistic", "training=newton", "method=exact", "retraining.removed=12")


def sweep(folder: Path, *words: str) -> Ran:
    """With ray results must find their folder; joblib's processes may be those of an earlier test, in that one's folder."""
    before = "" if "hydra/launcher=ray" in words else f"{folder}/"
    return call("validate", "-m", *SETTINGS, *words, f"hydra.sweep.dir={before}swept", f"store.dir={before}store", cwd=folder)


def table(folder: Path) -> str:
    """The summary, byte for byte, but for the column of times."""
    text = pd.read_csv(folder / "swept/summary.csv", dtype=str, keep_default_na=False)
    assert (text.loc[text.status == "finished", "seconds"].astype(float) >= 0).all()
    return text.drop(columns="seconds").to_csv(index=False)


def records(folder: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted((folder / "swept").glob("*/run.json"))]


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("basic")
    assert sweep(folder, *ASKED).status == 2
    statuses = pd.read_csv(folder / "swept/summary.csv").groupby("job").status.first()
    assert {job for job, status in statuses.items() if status == "finished"} == FINISHED
    assert set(statuses.index) == FINISHED | FAILED
    return folder


def gives_the_same(basic: Path, folder: Path, *words: str) -> None:
    ran = sweep(folder, *ASKED, *words)
    assert ran.status == 2, ran.err
    assert re.search(r"seed=-1 is not possible|method=nosuch is not known", ran.err)
    assert table(folder) == table(basic)


# ---------------------------------------------------------------------------------------------------------- this machine


def test_joblib_gives_the_same_table(basic: Path, tmp_path: Path) -> None:
    gives_the_same(basic, tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def test_jobs_that_run_at_once_train_nothing_twice(tmp_path: Path) -> None:
    words = ("method=loss,random,nearest", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert sweep(tmp_path, *words).status == 0
    reused = [record["reused"] for record in records(tmp_path)]
    assert sum("model" in each for each in reused) == len(reused) - 1
    shards = [re.fullmatch(r"(\d+) of (\d+) retraining shards", word) for each in reused for word in each]
    (of_each,) = {int(found[2]) for found in shards if found}
    assert sum(int(found[1]) for found in shards if found) == (len(reused) - 1) * of_each


@pytest.mark.parametrize("launcher", ["joblib", "ray", "submitit_local", "submitit_slurm"])
def test_each_engine_is_set_up_by_its_name(launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(launching, "cores", lambda: 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Hydra warns where a plugin registered the same name
        ran = call("validate", f"hydra/launcher={launcher}", "--cfg", "hydra", cwd=tmp_path)
    assert ran.status == 0, ran.err
    said = OmegaConf.create(ran.out).hydra.launcher
    expected = {"joblib": {"n_jobs": 7}, "ray": {"cores": 7, "address": "local"}}.get(launcher, {"timeout_min": 240})
    assert {key: said[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("choice", "extra"),
    [
        ("launcher=ray", "ray"),
        ("launcher=submitit_slurm", "submitit"),
        ("launcher=submitit_local", "submitit"),
        ("sweeper=optuna", "optuna"),
        ("sweeper=optuna_damping", "optuna"),
    ],
)
def test_an_engine_that_is_not_installed_names_its_extra(choice: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    ran = sweep(tmp_path, "seed=0,1", f"hydra/{choice}")
    assert ran.status == 2
    assert re.fullmatch(rf"influx: hydra/{choice} needs an extra: pip install 'influx\[{extra}\]'\.\n", ran.err)
    assert not (tmp_path / "swept/0").exists()


# ------------------------------------------------------------------------------------------------------------------- ray


@pytest.fixture(scope="module")
def ray_nodes() -> Iterator[str]:
    """The address of a ray cluster of two nodes with one processor each, started in another folder than any sweep."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # nodes find this module
        cluster = Cluster()
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster.address
        cluster.shutdown()


@pytest.mark.ray
def test_a_ray_cluster_gives_the_same_table(basic: Path, ray_nodes: str, tmp_path: Path) -> None:
    gives_the_same(basic, tmp_path, "hydra/launcher=ray")
    assert {record["status"] for record in records(tmp_path)} >= {"finished"}  # here, not where the nodes were started
    assert (tmp_path / "store/model").is_dir()


def killed(cfg: DictConfig) -> float | None:
    if cfg.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return app._job(cfg)


@pytest.mark.ray
def test_a_killed_process_costs_its_own_job(ray_nodes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "job", killed)
    ran = sweep(tmp_path, "method=loss", "seed=0,1,2", "hydra/launcher=ray", "hydra.launcher.task.max_retries=0")
    assert ran.status == 2
    assert re.search(r"influx: the ray process of job 1 was killed, most often because memory ran out\.", ran.err)
    statuses = pd.read_csv(tmp_path / "swept/summary.csv").groupby("job").status.first()
    assert list(statuses) == ["finished", "failed: the ray process of job 1 was killed, most often because memory ran out.", "finished"]


@pytest.mark.ray
def test_a_ray_of_this_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert sweep(tmp_path, "method=loss,random", "hydra/launcher=ray", "hydra.launcher.cores=1").status == 0
    assert {record["status"] for record in records(tmp_path)} == {"finished"}
    assert not ray.is_initialized()


@pytest.mark.ray
def test_what_ray_cannot_do_is_refused(ray_nodes: str, tmp_path: Path) -> None:
    words = ("seed=0,1", "hydra/launcher=ray")
    ran = sweep(tmp_path, *words, "retraining.backend=ray")
    assert ran.status == 2
    assert re.search(r"retraining\.backend=ray is not possible in jobs that hold ray's processors: leave it out", ran.err)
    ran = sweep(tmp_path, *words, "hydra.launcher.address='127.0.0.1:9'")
    assert ran.status == 2
    assert re.search(r"nothing answers at hydra\.launcher\.address=127\.0\.0\.1:9 .*is the cluster running", ran.err)


@pytest.mark.ray
def test_a_node_without_the_folder_says_so(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from hydra_plugins import influx_launchers

    with pytest.raises(app.InfluxError, match=r"has no folder .*nowhere: start the sweep in one that all nodes share\."):
        influx_launchers._run(str(tmp_path / "nowhere"), None, None, None, None)


# -------------------------------------------------------------------------------------------------------------- submitit

SLURM = {  # stands in for a cluster: sbatch returns at once, and the tasks of the array run one after the other
    "srun": 'while [[ "$1" == -* ]]; do [[ "$1" == --output ]] && shift; shift; done; exec "$@"',
    "sacct": 'echo "JobID|State"; for task in 0 1 2 3 4 5; do echo "7_$task|RUNNING"; done',
    "sbatch": """
        cp "$1" "$(dirname "$0")/asked.sh"
        tasks=$(sed -n 's/^#SBATCH --array=\\([0-9]*\\)-\\([0-9]*\\).*/\\1 \\2/p' "$1")
        export SLURM_ARRAY_JOB_ID=7 SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
        exec 3>&1 > /dev/null 2>&1
        (sleep 1; for i in $(seq $tasks); do SLURM_JOB_ID=7$i SLURM_ARRAY_TASK_ID=$i bash "$(dirname "$0")/asked.sh"; done) 3>&- &
        echo "Submitted batch job 7" >&3
    """,
}


@pytest.mark.submitit
def test_submitit_gives_the_same_table(basic: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    gives_the_same(basic, tmp_path, "hydra/launcher=submitit_local")
    assert list((tmp_path / "swept/.submitit").glob("*/*_log.out"))


@pytest.mark.submitit
def test_slurm_gets_what_the_settings_say(basic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, lines in SLURM.items():
        (programs / name).write_text(f"#!/bin/bash\n{lines}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    gives_the_same(basic, tmp_path, "hydra/launcher=submitit_slurm", "hydra.launcher.partition=short", "hydra.launcher.cpus_per_task=2")
    asked = (programs / "asked.sh").read_text()
    for option in ("partition=short", "cpus-per-task=2", "mem=8GB", "time=240", "nodes=1", "job-name=influx-validate"):
        assert f"#SBATCH --{option}\n" in asked


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: True)
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = sweep(tmp_path, "seed=0,1", "hydra/launcher=submitit_slurm")
    assert ran.status == 2
    assert re.fullmatch(r"influx: hydra/launcher=submitit_slurm finds no SLURM \(srun\) .*: start the sweep on a login node\.\n", ran.err)


# ---------------------------------------------------------------------------------------------------------------- optuna


@pytest.mark.optuna
def test_damping_is_tuned_on_removals_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    ran = call("validate", "-m", *SEARCH, "hydra.sweeper.n_trials=4", "pictures=false", "hydra.sweep.dir=swept", cwd=tmp_path)
    assert ran.status == 0, ran.err
    best = yaml.safe_load((tmp_path / "swept/optimization_results.yaml").read_text())
    summary = pd.read_csv(tmp_path / "swept/summary.csv").query("statistic == 'spearman'").set_index("method.damping")
    assert len(summary) == 4
    assert summary.value.idxmax() == pytest.approx(best["best_params"]["method.damping"])
    assert summary.value.max() == pytest.approx(best["best_value"])
    assert sum("model" in record["reused"] for record in records(tmp_path)) == 3  # trained once
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.glob("swept/*/influence.npz")}
    assert call("validate", "-m", *SEARCH, "hydra.sweeper.n_trials=4", "pictures=false", "hydra.sweep.dir=swept", cwd=tmp_path).status == 0
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("swept/*/influence.npz")} == stamps  # the same search asks for the same
    assert len(influx.load(tmp_path / "swept").runs) == 4
    reported = call("validate", *SEARCH[1:], "pictures=false", "loo=true", cwd=tmp_path)
    assert reported.status == 0, reported.err
    tuned, told = (np.load(folder / "ground_truth.npz")["train_index"] for folder in (tmp_path / "swept/0", reported.folder))
    assert len(np.intersect1d(tuned, told)) < len(tuned) / 2


@pytest.mark.optuna
def test_a_trial_that_fails_is_not_chosen(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "method=loss", "seed=choice(0,-1)")
    assert sweep(tmp_path, *words).status == 1  # the search goes on, and the exit status says that jobs failed
    statuses = pd.read_csv(tmp_path / "swept/summary.csv").groupby("job").status.first()
    assert set(statuses) == {"finished", "failed: seed=-1 is not possible: it must be a whole number of at least 0."}
    assert yaml.safe_load((tmp_path / "swept/optimization_results.yaml").read_text())["best_params"]["seed"] == 0
