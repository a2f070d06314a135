"""`influx doctor`: what it says of a sound installation, and that each fault is found, named, and comes with what to do."""

from __future__ import annotations

import errno
import importlib.metadata
import logging
import os
import pty
import re
import select
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import Ran, Run
from packaging.requirements import Requirement

from influx import doctor, installation, machine, self_check, storekeeping
from influx.finding import BROKEN, NOTE, OFF, Finding

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def lines(out: str) -> dict[str, tuple[str, str]]:
    """Name to (state, what is said) of a printed examination."""
    found = (re.fullmatch(r"  (ok|note|off|broken) +(\S+(?: \S+)*?) {1,}(?: *)(.*)", line) for line in out.splitlines())
    return {f"{match[2]}": (match[1], match[3]) for match in found if match}


# --------------------------------------------------------------------------------------------------------------- the whole


@pytest.fixture(scope="module")
def examined(run_influx: Run, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run_influx("doctor", cwd=tmp_path_factory.mktemp("doctor"))


def test_a_sound_installation_is_fine(examined: Ran) -> None:
    assert (examined.status, examined.err) == (0, "")
    assert re.search(r"\ninflux works here(, with \d+ notes?)?\n$", examined.out)
    headings = [line for line in examined.out.splitlines() if line and not line.startswith(" ")][:-1]
    assert headings == ["packages", "extras", "machine", "places and shell", "self-check"]
    assert "\x1b" not in examined.out  # no colours on a pipe


def test_it_names_every_package_that_the_project_asks_for(examined: Ran) -> None:
    packages = examined.out.partition("\nextras\n")[0]
    for wanted in map(Requirement, PROJECT["dependencies"]):
        assert re.search(rf"^  ok +{wanted.name} +{re.escape(importlib.metadata.version(wanted.name))}$", packages, re.MULTILINE)


def test_it_names_every_extra_and_what_installs_it(examined: Ran) -> None:
    part = examined.out.partition("\nextras\n")[2].partition("\nmachine\n")[0]
    for name, listed in PROJECT["optional-dependencies"].items():
        (said,) = re.findall(rf"^  (ok|off) +{name} +(.*(?:\n +->.*)?)$", part, re.MULTILINE)
        missing = [one.name for one in map(Requirement, listed) if installation._trouble(one)]
        assert said[0] == ("off" if missing else "ok")
        assert (f"-> pip install 'influx[{name}]'" in said[1]) == bool(missing)
        assert all(one in said[1] for one in missing)


def test_the_self_check_says_correlation_and_seconds(examined: Ran) -> None:
    said = re.search(
        r"iris +exact influence against leave-one-out, 120 flowers, float64: Spearman (\S+), slope (\S+), (\S+) s\n", examined.out
    )
    assert said
    assert float(said[1]) > 0.999
    assert 1 < float(said[2]) < 1.2  # leaving one out is a finite change: more than the first order
    assert float(said[3]) < 30


def test_it_leaves_nothing_behind(run_influx: Run, tmp_path: Path) -> None:
    run_influx("doctor", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_self_check_can_be_left_out(run_influx: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "self_check", lambda: 1 / 0)
    ran = run_influx("doctor", "self_check=false", cwd=tmp_path)
    assert ran.status == 0
    assert "self-check" not in ran.out


def test_a_terminal_has_colours(tmp_path: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe(sys.executable, [sys.executable, "-m", "influx", "doctor", "self_check=false"], {**os.environ, "TERM": "xterm"})
    shown, end = "", time.monotonic() + 60
    while time.monotonic() < end and "influx works here" not in shown:
        if select.select([terminal], [], [], 0.5)[0]:
            try:
                shown += os.read(terminal, 65536).decode()
            except OSError:  # closed at the other end
                break
    os.close(terminal)
    os.waitpid(child, 0)
    assert re.search(r"\x1b\[32mok {5} *\x1b\[0m", shown)
    assert re.search(r"\x1b\[33mnote *\x1b\[0m|works here\r", shown)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("quick",), r"influx doctor has no 'quick'; it has store\.dir=, self_check=\.$"),
        (("store.dri=a",), r"there is no key 'store\.dri' here; there are store\.dir, self_check\. Did you mean 'store\.dir'\?$"),
        (("self_check=perhaps",), r"self_check=perhaps is not possible: it must be true or false\.$"),
        (("store.dir=",), r"store\.dir= is not possible: it must be the folder of a store\.$"),
    ],
)
def test_a_wrong_word_is_refused(run_influx: Run, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    ran = run_influx("doctor", *words, cwd=tmp_path)
    assert (ran.status, ran.out) == (2, "")
    assert re.search(message, ran.err.strip())


def test_help_names_every_key(run_influx: Run, tmp_path: Path) -> None:
    said = run_influx("doctor", "--help", cwd=tmp_path).out
    assert all(f"  {key}=" in said for key in doctor.RULES)
    assert {word.partition("=")[0] for word in doctor.WORDS} == {*doctor.RULES}


# ----------------------------------------------------------------------------------------------------------------- faults


def test_what_is_broken_is_named_at_the_end_with_status_1(run_influx: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "packages", lambda: [Finding("pandas", "1.5 (>=2.2 is needed)", BROKEN, "pip install 'pandas>=2.2'")])
    ran = run_influx("doctor", "self_check=false", cwd=tmp_path)
    assert ran.status == 1
    assert ran.out.endswith("\nbroken: pandas\n")
    assert re.search(r"^  broken  pandas +1\.5 \(>=2\.2 is needed\)\n +-> pip install 'pandas>=2\.2'$", ran.out, re.MULTILINE)


@pytest.mark.parametrize("module", ["torch", "joblib"])
def test_a_package_that_cannot_be_imported_is_a_finding_not_the_end(tmp_path: Path, module: str) -> None:
    (tmp_path / module).mkdir()
    (tmp_path / module / "__init__.py").write_text("raise ImportError('libfoo.so: cannot open')\n")
    path = f"{tmp_path}{os.pathsep}{Path(installation.__file__).parents[1]}"
    command = [sys.executable, "-m", "influx", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "ImportError: libfoo.so: cannot open" in done.stdout
    assert "places and shell" in done.stdout
    assert re.search(r"^broken: .*(self-check|iris)$", done.stdout, re.MULTILINE)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions that packages pretend to have, and a project installed from a wheel."""
    versions = {"influx": "0.1.0", "alpha": "1.4", "beta": "2.0", "gamma": "1!0"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    listed = [
        "alpha>=1.2",
        "beta<3",
        "nothing; sys_platform == 'plan9'",
        "gamma; extra == 'more'",
        "delta>=1; extra == 'more'",
        "alpha>=2; extra == 'x'",
    ]
    monkeypatch.setattr(installation, "PACKAGE", Path("/somewhere/site-packages/influx"))
    monkeypatch.setattr(installation, "version", version)
    monkeypatch.setattr(installation, "requires", lambda _: listed)
    monkeypatch.setattr(installation, "metadata", lambda _: SimpleNamespace(get_all=lambda _: ["more", "x"]))
    return versions


def test_requirements_are_read_from_the_installed_metadata(installed: dict[str, str]) -> None:
    assert [finding.name for finding in installation.packages()] == ["python", "influx", "alpha", "beta"]
    assert [*installation.extras()] == [
        Finding("more", "needs delta", OFF, "pip install 'influx[more]'"),
        Finding("x", "needs alpha", OFF, "pip install 'influx[x]'"),
    ]
    installed |= {"delta": "1.0", "alpha": "2.1"}
    assert [*installation.extras()] == [Finding("more", "gamma 1!0, delta 1.0"), Finding("x", "alpha 2.1")]


def test_a_missing_or_old_package_is_broken(installed: dict[str, str]) -> None:
    installed["alpha"] = "1.1"
    del installed["beta"]
    assert [*installation.packages()][2:] == [
        Finding("alpha", "1.1 (>=1.2 is needed)", BROKEN, "pip install 'alpha>=1.2'"),
        Finding("beta", "missing (<3 is needed)", BROKEN, "pip install 'beta<3'"),
    ]


def test_a_checkout_is_asked_for_what_it_wants_today() -> None:
    wanted = installation.wanted()
    assert [str(one) for one in wanted.core] == [str(Requirement(line)) for line in PROJECT["dependencies"]]
    assert {*wanted.extras} == {*PROJECT["optional-dependencies"]}


@pytest.mark.parametrize(("loads", "state"), [(True, "ok"), (False, NOTE)])
def test_torchvisions_library_that_does_not_load_is_a_note(monkeypatch: pytest.MonkeyPatch, loads: bool, state: str) -> None:
    monkeypatch.setattr("influx.vision.native_library_loads", lambda: loads)
    finding = installation.native_library()
    assert finding.state == state
    assert bool(finding.remedy) == (not loads)


class Gpu:
    """What torch says of a CUDA device."""

    def __init__(self, works: bool) -> None:
        self.works = works

    def zeros(self, *_: Any, **__: Any) -> torch.Tensor:
        if not self.works:
            raise RuntimeError("no kernel image is available\nmore")
        return torch.tensor(0.0)


@pytest.mark.parametrize("works", [True, False])
def test_a_gpu_is_asked_for_one_number(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "H100")
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (70 * 2**30, 80 * 2**30))
    monkeypatch.setattr("torch.zeros", Gpu(works).zeros)
    (finding,) = machine.devices()
    if works:
        assert finding == Finding("cuda:0", "H100, 80 GiB, 70 GiB free")
    else:
        assert (finding.state, finding.said) == (BROKEN, "H100 does not compute (no kernel image is available)")
        assert "device=cpu" in finding.remedy


@pytest.mark.parametrize(
    ("built", "said", "state"),
    [(None, "cpu (torch is built without CUDA)", "ok"), ("13.0", "cpu (torch is built for CUDA 13.0 and sees no device)", NOTE)],
)
def test_without_a_gpu_it_says_why(monkeypatch: pytest.MonkeyPatch, built: str | None, said: str, state: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", built)
    (finding,) = machine.devices()
    assert (finding.said, finding.state) == (said, state)


def test_more_threads_than_cores_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("influx.pipelines.session.ALL_CORES", 64)
    monkeypatch.setattr("joblib.cpu_count", lambda only_physical_cores=False: 4 if only_physical_cores else 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    cores, threads = machine.cores()
    assert cores.said == "4 physical, 8 logical, that this process may use"
    assert "64 from 100,000 parameters on" in threads.said
    assert "OMP_NUM_THREADS=64" in threads.said
    assert (threads.state, threads.remedy) == (NOTE, "set OMP_NUM_THREADS=4, or threads=4")


def test_the_store_is_counted_and_tried(run_influx: Run, tmp_path: Path) -> None:
    run_influx("train", "dataset=iris", "model=logistic", "store.dir=mine", cwd=tmp_path)
    store = tmp_path / "mine"
    size = sum(entry.size for entry in storekeeping.entries(store))
    found = {finding.name: finding for finding in machine.places(store)}
    assert found["store"].said == f"{store}, 1 results, {size / 2**10:.3g} KiB"
    assert found["store"].state == "ok"
    assert found["configuration"].said == str(Path(__file__).parents[1] / "conf")


def test_a_store_that_cannot_be_written_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:  # root may write anywhere, so the system's answer is played
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    found = {finding.name: finding for finding in machine.places(tmp_path / "store")}
    assert (found["store"].state, found["results"].state) == (BROKEN, BROKEN)
    assert found["store"].said == f"{tmp_path}/store cannot be written (Read-only file system), empty"
    assert "store.dir=null" in found["store"].remedy
    assert "hydra.run.dir=" in found["results"].remedy


def test_a_full_disk_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
    found = {finding.name: finding for finding in machine.places(tmp_path)}
    assert (found["disk"].state, found["disk"].said) == (NOTE, "1 MiB free where the store is")
    assert "influx store remove" in found["disk"].remedy


# ----------------------------------------------------------------------------------------------------------------- the shell


@pytest.mark.parametrize(
    ("shell", "file", "content"),
    [
        ("bash", ".bashrc", 'eval "$(influx -sc install=bash)"\n'),
        ("zsh", ".zshrc", 'eval "$(influx -sc install=zsh)"\n'),
        ("fish", ".config/fish/completions/influx.fish", "complete -c influx\n"),
    ],
)
def test_completion_is_found_where_its_own_advice_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str, file: str, content: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    before = {finding.name: finding for finding in installation.shell()}["completion"]
    assert (before.state, before.said) == (NOTE, f"not set up for {shell}")
    assert f"influx -sc install={shell}" in before.remedy
    assert Path(file).name in before.remedy
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(content)
    after = {finding.name: finding for finding in installation.shell()}["completion"]
    assert (after.state, after.said) == ("ok", f"set up for {shell} in {tmp_path / file}")


def test_another_shell_and_no_command_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    monkeypatch.setenv("PATH", "/nowhere")
    command, completion = installation.shell()
    assert (command.state, command.said) == (NOTE, "influx is not on PATH")
    assert (completion.state, completion.said) == (NOTE, "the shell tcsh is none of bash, zsh, fish")


# ------------------------------------------------------------------------------------------------------------ the self-check


def test_a_wrong_number_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate of the wrong sign."""
    from influx.solvers.exact import Exact

    solve = Exact.solve
    monkeypatch.setattr(Exact, "solve", lambda *words: replace(found := solve(*words), x=-found.x))
    (finding,) = self_check.self_check()
    assert finding.state == BROKEN
    assert "Spearman -0.99" in finding.said
    assert "at least 0.99 is right" in finding.said


def test_the_self_check_leaves_logging_as_it_was() -> None:
    before = logging.getLogger().handlers[:], logging.getLogger().level
    list(self_check.self_check())
    assert (logging.getLogger().handlers, logging.getLogger().level) == before


def test_a_run_that_breaks_shows_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("influx.experiment.Experiment.train", fail)
    (finding,) = self_check.self_check()
    assert finding.state == BROKEN
    assert finding.said == "RuntimeError: no such operator"
    assert "HYDRA_FULL_ERROR=1 influx doctor" in finding.remedy


def test_results_that_cannot_be_read_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("influx.runs.Run.correlations", property(lambda _: pd.DataFrame({"statistic": ["spearman"], "value": [1.0]})))
    (finding,) = self_check.self_check()
    assert (finding.state, finding.said) == (BROKEN, "its results cannot be read ('slope')")


def test_a_slow_machine_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "SLOW", 0.0)
    (finding,) = self_check.self_check()
    assert finding.state == NOTE
