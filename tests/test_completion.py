"""Tab completion: what is offered, word by word, and TAB pressed in real shells on a terminal, after the documented line."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import Run

from influx.cli import COMMANDS
from influx.flags import flags_first

METHODS = sorted(file.stem for file in (Path(__file__).parents[1] / "conf/method").glob("*.yaml"))

# ------------------------------------------------------------------------------------------------------------ what is offered


def completed(run: Run, cwd: Path, line: str, point: int | None = None) -> set[str]:
    place = {} if point is None else {"COMP_POINT": str(point)}
    ran = run("-sc", "query=bash", cwd=cwd, env={"COMP_LINE": line, **place})
    assert (ran.status, ran.err) == (0, ""), "a shell that completes would show it in the middle of the line"
    return set(ran.out.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("influx validate dataset=iris -m method=lis", {"method=lissa"}),  # flags in the middle
        ("influx validate -m me", {"method=", "method.", "measurement=", "measurement.", "memory="}),
        ("influx validate -cd conf method=e", {f"method={name}" for name in METHODS if name.startswith("e")}),
        ("influx validate -m method=exact,e", {f"method=exact,{name}" for name in METHODS if name.startswith("e")}),
        ("influx validate -m method=exact,cg,lis", {"method=exact,cg,lissa"}),
        ("influx validate dtype=", {"dtype=float32", "dtype=float64"}),
        ("influx validate -m dtype=float32,", {"dtype=float32,float32", "dtype=float32,float64"}),
        ("influx validate retraining.start=w", {"retraining.start=scratch", "retraining.start=warm"}),  # the shell keeps the second
        ("influx train dataset.standardize=", {"dataset.standardize=true", "dataset.standardize=false"}),
        ("influx train pictures=", {"pictures=true", "pictures=false", "pictures=pdf", "pictures=svg"}),
        ("influx validate logger=", {"logger=mlflow", "logger=tensorboard", "logger=wandb"}),
        ("influx validate --c", {"--help", "--cfg", "--multirun", "--config-dir", "--info", "--resolve"}),
        ("influx doctor s", {"store.dir=", "self_check=true", "self_check=false"}),
        (
            "influx store ",
            {"list", "remove", "verify"} | {"store.dir=", "id=", "kind=", "older_than=", "about=", "all=", "dry_run="} | {"everything="},
        ),
        ("influx report ", set()),  # the shell offers folders
        ("influx rerun out", set()),
        ("influx validate 'half", set()),
        ("influx validate nonsense=", set()),
    ],
)
def test_what_is_offered(run_influx: Run, tmp_path: Path, line: str, offered: set[str]) -> None:
    assert completed(run_influx, tmp_path, line) == offered


def test_the_line_ends_at_the_cursor(run_influx: Run, tmp_path: Path) -> None:
    line = "influx validate method=ex dataset=iris"
    assert completed(run_influx, tmp_path, line, line.index(" dataset")) == {"method=exact", "method=external"}
    assert completed(run_influx, tmp_path, line, 8) == set(COMMANDS)


# --------------------------------------------------------------------------------------------------- flags, where they stand


@pytest.mark.parametrize(
    ("words", "sorted_words"),
    [
        ("a=1 -m b=2", "-m a=1 b=2"),
        ("a=1 -cd my=conf b=2 --cfg job", "-cd my=conf --cfg job a=1 b=2"),
        ("a=1 --config-dir=conf ~b +c=2", "--config-dir=conf a=1 ~b +c=2"),
        ("--info a=1", "--info a=1"),
        ("a=1 --info defaults b=-2", "--info defaults a=1 b=-2"),
        ("a=1 -cd", "-cd a=1"),
        ("", ""),
    ],
)
def test_flags_come_first(words: str, sorted_words: str) -> None:
    assert flags_first(words.split()) == sorted_words.split()


def test_a_flag_may_stand_among_settings(run_influx: Run, tmp_path: Path) -> None:
    words = ("dataset=iris", "-m", "model=logistic", "dataset.train_size=40", "hydra.sweep.dir=sweep", "seed=0,1")
    ran = run_influx("train", *words, cwd=tmp_path)
    again = run_influx("rerun", "sweep/0", "seed=3", "-m", "dataset.test_size=5,6", "hydra.sweep.dir=again", cwd=tmp_path)
    assert (ran.status, again.status) == (0, 0), ran.err + again.err
    assert [(tmp_path / place / "run.json").is_file() for place in ("sweep/0", "sweep/1", "again/0", "again/1")] == [True] * 4


# ------------------------------------------------------------------------------------------------------------- real shells

INTERACTIVE = {"bash": ("--norc", "--noprofile", "-i"), "zsh": ("-f", "-i"), "fish": ("--no-config", "-i")}
PREPARE = {
    "bash": "bind 'set bell-style none'; bind 'set show-all-if-ambiguous on'; bind 'set enable-bracketed-paste off'; PS1='> '",
    "zsh": "PS1='> '; unsetopt BEEP ZLE_BRACKETED_PASTE",
    "fish": "function fish_prompt; echo '> '; end",
}
DOCUMENTED = {
    "bash": 'eval "$(influx -sc install=bash)"',
    "zsh": 'eval "$(influx -sc install=zsh)"',
    "fish": "influx -sc install=fish | source",
}


class Terminal:
    """A shell on a pseudo-terminal."""

    def __init__(self, shell: str, cwd: Path) -> None:
        bin_folder = cwd / "bin"
        bin_folder.mkdir()
        (bin_folder / "influx").write_text(f'#!/bin/sh\nexec {sys.executable} -m influx "$@"\n')
        (bin_folder / "influx").chmod(0o755)
        env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "TERM": "xterm", "HOME": str(cwd), "COLUMNS": "200"}
        self._child, self._terminal = pty.fork()
        if self._child == 0:
            os.chdir(cwd)
            os.execvpe(shell, [shell, *INTERACTIVE[shell]], env)

    def type(self, text: str, until: str, seconds: float = 20.0) -> str:
        """Type; what the terminal shows from then on, when `until` (a pattern) has come, without colours and cursor movements."""
        os.write(self._terminal, text.encode())
        shown, end = "", time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self._terminal], [], [], 0.1)[0]:
                shown += os.read(self._terminal, 65536).decode(errors="replace")
            plain = re.sub(r"\x1b(\[[0-9;?=>]*[a-zA-Z]|[()][A-Z0-9]|[=>]|\][^\x07]*\x07)", "", shown)
            if re.search(until, plain):
                return plain
        raise AssertionError(f"no {until!r} after {text!r}: {plain!r}")

    def close(self) -> None:
        os.kill(self._child, signal.SIGKILL)
        os.close(self._terminal)
        os.waitpid(self._child, 0)


@pytest.mark.parametrize("shell", list(INTERACTIVE))
def test_tab_in_a_real_shell(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    terminal = Terminal(shell, tmp_path)
    try:
        terminal.type(f"{PREPARE[shell]}\n", ">")
        terminal.type(f"{DOCUMENTED[shell]}; echo rea''dy\n", "ready")
        terminal.type("influx va\t", r"influx va.*lidate")
        terminal.type(" measurement=mar\t", r"measurement=mar.*gin")
        if shell == "fish":  # it draws the whole line anew
            terminal.type(" -m method=exact,lis\t", r"influx validate +measurement=margin +-m method=exact,lissa")
        else:  # ctrl-A goes to the line's beginning
            terminal.type(" -m method=exact,lis\t", r"lis.*sa")
            terminal.type("\x01echo \n", r"\ninflux validate measurement=margin -m method=exact,lissa *\r")
    finally:
        terminal.close()
