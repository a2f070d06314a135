"""A job that cannot even be composed costs only itself, with any launcher."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY, call
from omegaconf import DictConfig

from influx import app


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("method=loss,nosuch",), r"failed: method=nosuch is not known; choose from .*"),
        (("method=loss", "model=mlp,logistic", "model.width=4"), r"failed: there is no key '.*"),
    ],
)
def test_a_job_that_cannot_be_composed_costs_itself(tmp_path: Path, words: tuple[str, ...], reason: str) -> None:
    options = [word for word in TINY["validate"] if not word.startswith("model")]
    ran = call("validate", "-m", *options, *words, "hydra.sweep.dir=swept", cwd=tmp_path)
    assert ran.status == 2
    statuses = pd.read_csv(tmp_path / "swept/summary.csv").groupby("job").status.first()
    assert statuses[0] == "finished"
    assert pd.Series([statuses[1]]).str.fullmatch(reason).all()
    assert (tmp_path / "swept/0/influence.npz").is_file()
    assert not (tmp_path / "swept/1/influence.npz").exists()


def test_values_can_be_swept_from_a_file(tmp_path: Path) -> None:
    ran = call("train", "-m", *TINY["train"], "hydra.sweeper.params={seed:'0,1'}", "hydra.sweep.dir=swept", cwd=tmp_path)
    assert ran.status == 0, ran.err
    assert list(pd.read_csv(tmp_path / "swept/summary.csv")["seed"]) == [0, 1]


def test_folders_can_be_named_by_what_is_swept(tmp_path: Path) -> None:
    """Words that refer to settings are kept as they were typed, so the same sweep is found again."""
    words = ("validate", "-m", *TINY["validate"], "method=loss,random", "hydra.sweep.subdir=m_${hydra:runtime.choices.method}")
    assert call(*words, cwd=tmp_path).status == 0
    (folder,) = (tmp_path / "outputs/validate/sweeps").iterdir()
    assert {file.parent.name for file in folder.glob("*/run.json")} == {"m_loss", "m_random"}
    assert "its 2 finished jobs are not run again" in call(*words, cwd=tmp_path).out


def test_two_jobs_cannot_have_one_folder(tmp_path: Path) -> None:
    ran = call("train", "-m", *TINY["train"], "seed=0,1", "training.epochs=2,3", "hydra.sweep.subdir=s${seed}", cwd=tmp_path)
    assert ran.status == 2
    assert "hydra.sweep.subdir gives two jobs the folder s0: " in ran.err
    assert "Name in it each key that is swept, or ${hydra.job.num}." in ran.err
    assert not list(tmp_path.rglob("run.json"))


def test_jobs_that_never_began_are_in_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(cfg: DictConfig) -> float | None:
        if cfg.seed == 1:
            raise KeyboardInterrupt
        return app._job(cfg)

    monkeypatch.setattr(app, "job", stopped)
    ran = call("train", "-m", *TINY["train"], "seed=0,1,2", "hydra.sweep.dir=swept", "hydra.sweep.subdir=s${seed}", cwd=tmp_path)
    assert ran.status == 130
    statuses = pd.read_csv(tmp_path / "swept/summary.csv").groupby("job").status.first()
    assert list(statuses) == [
        "finished", "failed: it ended before it began (no run.json)", "failed: the sweep was stopped before it began",
    ]  # fmt: skip
    monkeypatch.undo()
    words = ("train", "-m", *TINY["train"], "seed=0,1,2", "hydra.sweep.dir=swept", "hydra.sweep.subdir=s${seed}")
    assert call(*words, cwd=tmp_path).status == 0
    assert set(pd.read_csv(tmp_path / "swept/summary.csv")["status"]) == {"finished"}
