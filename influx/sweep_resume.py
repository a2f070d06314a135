"""The same sweep again does what is missing: it goes on in the folder where it was, and a job that is finished there is not run again.

The same sweep has the same words behind the same command. A job is finished when its folder says so for the same settings, code, libraries
and files (`influx.runfolder.is_finished`); one that failed or was killed runs again. A sweep that other code began keeps its folder, and a
new one begins beside it; so does one whose folder another process is still working in.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from influx.composing import typed
from influx.configuration import quoted

log = logging.getLogger("influx")

LATEST = 100  # earlier sweeps that are looked at
NO_MATTER = ("fresh", "logger")  # keys that no number depends on
HELD: list[FileLock] = []  # by this process, until its sweep has ended


class Resume(Callback):
    """Hydra asks before a sweep begins; what is changed here in its configuration counts."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _place(config)
        begun = Path(config.hydra.sweep.dir) / "multirun.yaml"
        if not begun.exists():  # optuna's sweeper writes none
            OmegaConf.save(config, begun)


def _place(config: DictConfig) -> None:
    """Choose the folder, and keep it for this process."""
    own = Path(config.hydra.sweep.dir)
    if any(word.lstrip("+").startswith("hydra.sweep.dir=") for word in typed(config.hydra.overrides.hydra)):
        if not _hold(own):
            print(f"influx: another process is working in {own}: wait for it, or choose another hydra.sweep.dir=...", file=sys.stderr)
            raise SystemExit(2)
        return
    found = None if config.get("fresh") else _earlier(config)
    if found is not None and _hold(found):
        print(f"the same sweep is in {found}: its {_done(found)} finished jobs are not run again (fresh=true would).")
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = str(found)
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(found))}")  # jobs are composed anew from words
        return
    if found is not None:
        print(f"the same sweep is being run by another process in {found}; this one has a folder of its own, {own}.")
    _hold(own)


def _hold(folder: Path) -> bool:
    """Keep others out of the folder for as long as this process lives; False when another one is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        return False
    HELD.append(lock)
    return True


def release() -> None:
    """Let others into the folder of the sweep that has ended."""
    while HELD:
        HELD.pop().release()


def _earlier(config: DictConfig) -> Path | None:
    """The newest folder beside the one of this sweep that holds the same sweep, begun by the same code."""
    parent, asked = Path(config.hydra.sweep.dir).parent, _words(typed(config.hydra.overrides.task))
    begun = sorted(parent.glob("*/multirun.yaml"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for file in begun[:LATEST]:
        try:
            hydra = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["hydra"]
            same = hydra["job"]["config_name"] == config.hydra.job.config_name and _words(hydra["overrides"]["task"]) == asked
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            continue
        if same:
            return file.parent if _is_by_this_code(file.parent) else None
    return None


def _words(task: list[Any]) -> list[str]:
    """What was typed, but for the keys that no number depends on."""
    return [str(word) for word in task if str(word).lstrip("+~").partition("=")[0] not in NO_MATTER]


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    for file in folder.rglob("run.json"):
        try:
            yield json.loads(file.read_text())
        except (OSError, ValueError):  # killed while it was made by other means than ours
            continue


def _is_by_this_code(folder: Path) -> bool:
    sources = {record["source"] for record in _records(folder) if "source" in record}
    if not sources:
        return True
    from influx.runfolder import source_digest

    return sources == {source_digest()}


def _done(folder: Path) -> int:
    return sum(record.get("status") == "finished" for record in _records(folder))


def finished(cfg: DictConfig, folder: Path) -> Mapping[str, Any] | None:
    """The record of the finished run in a job's folder, if it is that of this job; noted as belonging to today's sweep."""
    record = folder / "run.json"
    if not record.is_file():
        return None
    from influx.runfolder import is_finished

    try:
        config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException:  # the job itself says so
        return None
    if not is_finished(folder, {key: value for key, value in config.items() if key not in NO_MATTER}):
        return None
    os.utime(record)  # newer than the words that Hydra has just written beside it
    log.info("finished already: %s", folder)
    said: dict[str, Any] = json.loads(record.read_text())
    return said
