"""The same sweep again does what is missing, and takes nothing for finished that is not."""

from __future__ import annotations

import json
import linecache
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY, Ran, call
from filelock import FileLock

from influx.provenance import surroundings
from influx.runfolder import RunFolder

ASKED = ("method=loss,random", "dataset.split_seed=0,1")


def sweep(cwd: Path, *more: str) -> Ran:
    return call("validate", "-m", *TINY["validate"], *(more or ASKED), cwd=cwd)


def folders(cwd: Path) -> list[Path]:
    return sorted((cwd / "outputs/validate/sweeps").iterdir())


def begun(folder: Path) -> dict[str, str]:
    """When each job's run began."""
    return {file.parent.name: json.loads(file.read_text())["started"] for file in folder.glob("*/run.json")}


@pytest.fixture
def done(tmp_path: Path) -> Path:
    assert sweep(tmp_path).status == 0
    return tmp_path


def test_a_finished_sweep_repeats_nothing(done: Path) -> None:
    (folder,) = folders(done)
    table, stamps = (folder / "summary.csv").read_bytes(), {file: file.stat().st_mtime_ns for file in folder.glob("*/influence.npz")}
    again = sweep(done)
    assert again.status == 0
    assert "its 4 finished jobs are not run again (fresh=true would)" in again.out
    assert folders(done) == [folder]
    assert (folder / "summary.csv").read_bytes() == table  # seconds too: they are those of the runs that were made
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*/influence.npz")} == stamps


def test_only_what_is_missing_runs(done: Path) -> None:
    (folder,) = folders(done)
    before = begun(folder)
    for job, status in (("1", "running"), ("3", "failed: of something")):  # killed, and failed
        file = folder / job / "run.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "status": status, "started": "before"}))
    assert sweep(done).status == 0
    after = begun(folder)
    assert {job for job in after if after[job] == before[job]} >= {"0", "2"}
    assert after["1"] != "before"
    assert after["3"] != "before"
    assert list(pd.read_csv(folder / "summary.csv").groupby("job").status.first()) == ["finished"] * 4


def test_a_run_whose_results_are_gone_is_not_finished(done: Path) -> None:
    (folder,) = folders(done)
    (folder / "1" / "correlations.csv").unlink()
    before = begun(folder)
    for job in before:
        file = folder / job / "run.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "started": "before"}))
    assert sweep(done).status == 0
    assert {job for job, when in begun(folder).items() if when != "before"} == {"1"}
    assert (folder / "1" / "correlations.csv").is_file()


def test_results_go_only_when_the_record_says_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in between, a folder must not say that it has finished."""
    (tmp_path / "run.json").write_text('{"status": "finished"}')
    (tmp_path / "influence.npz").write_bytes(b"")

    def killed(path: Path, missing_ok: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        RunFolder(tmp_path).start("validate", {"seed": 0, "dtype": "float32"}, [])
    assert RunFolder.read(tmp_path)["status"] == "running"


@pytest.mark.parametrize("field", ["config_digest", "source", "surroundings"])
def test_a_job_of_other_settings_code_or_files_runs_again(done: Path, field: str) -> None:
    (folder,) = folders(done)
    file = folder / "2" / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: "another", "started": "before"}))
    assert sweep(done).status == 0
    if field == "source":  # the folder of other code is left as it is
        assert len(folders(done)) == 2
        assert begun(folder)["2"] == "before"
    else:
        assert folders(done) == [folder]
        assert begun(folder)["2"] != "before"


def test_other_words_and_fresh_have_a_folder_of_their_own(done: Path) -> None:
    assert sweep(done, "method=loss,random", "dataset.split_seed=0,2").status == 0
    assert len(folders(done)) == 2
    assert sweep(done, *ASKED, "fresh=true").status == 0
    assert len(folders(done)) == 3
    sweep(done)  # the newest of the same words goes on
    assert len(folders(done)) == 3


def test_a_folder_that_is_in_use_is_left_alone(done: Path) -> None:
    (folder,) = folders(done)
    with FileLock(folder / ".lock"):
        script = [sys.executable, "-m", "influx", "validate", "-m", *TINY["validate"], *ASKED]
        other = subprocess.run(script, cwd=done, capture_output=True, text=True, check=False)
        named = subprocess.run([*script, f"hydra.sweep.dir={folder}"], cwd=done, capture_output=True, text=True, check=False)
    assert "the same sweep is being run by another process in" in other.stdout
    assert len(folders(done)) == 2
    assert named.returncode == 2
    assert "another process is working in" in named.stderr


def test_a_sweep_that_is_killed_goes_on(tmp_path: Path) -> None:
    words = ["validate", "-m", *TINY["validate"], "method=loss,random,nearest,grad_dot", "dataset.split_seed=0,1,2"]
    script = [sys.executable, "-m", "influx", *words]
    with subprocess.Popen(script, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up and len(list(tmp_path.glob("outputs/validate/sweeps/*/3/run.json"))) == 0:
            time.sleep(0.02)
        os.kill(running.pid, signal.SIGKILL)
    (folder,) = folders(tmp_path)
    before = {file.parent.name: file.stat().st_mtime_ns for file in folder.glob("*/influence.npz")}
    finished = {job for job in before if json.loads((folder / job / "run.json").read_text())["status"] == "finished"}
    assert 3 <= len(finished) < 12
    assert call(*words, cwd=tmp_path).status == 0
    after = {file.parent.name: file.stat().st_mtime_ns for file in folder.glob("*/influence.npz")}
    assert {job for job in before if after[job] == before[job]} == finished
    assert set(pd.read_csv(folder / "summary.csv")["job"]) == set(range(12))


def test_what_surrounds_a_run_is_its_files_and_the_users_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "surrounded.py").write_text("from surrounded_by import helper\n\nclass Mine:\n    factor = 1\n")
    (tmp_path / "surrounded_by.py").write_text("def helper():\n    return 2\n")
    (tmp_path / "rows.csv").write_text("a\n1\n")
    config = {
        "dataset": {"path": str(tmp_path / "rows.csv")},
        "method": {"_target_": "surrounded.Mine", "parts": [{"_target_": "no.Such"}]},
    }
    first = surroundings(config)
    assert surroundings({**config, "store": {"dir": str(tmp_path)}}) == first  # where results go is no part of it
    (tmp_path / "rows.csv").write_text("a\n1\n2\n")
    second = surroundings(config)
    assert second != first
    stamp = (tmp_path / "rows.csv").stat()
    (tmp_path / "rows.csv").write_text("a\n1\n3\n")
    os.utime(tmp_path / "rows.csv", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # of the same size and time
    third = surroundings(config)
    assert third != second
    for name, text in (
        ("surrounded", "from surrounded_by import helper\n\nclass Mine:\n    factor = 22\n"),
        ("surrounded_by", "def helper():\n    return 3\n"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name)
        linecache.clearcache()
        assert surroundings(config) != third
        third = surroundings(config)
    assert surroundings({"dataset": {"path": "x\0y"}, "seed": 0}) == surroundings({"seed": 0})
