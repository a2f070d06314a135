"""The commands: each file reads like the protocol section of a paper."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from influx.errors import InfluxError
from influx.instantiate import build
from influx.loggers import Logger
from influx.loggers.account import account_of
from influx.loggers.base import open_logger, tell
from influx.pipelines import estimate, train, validate
from influx.pipelines.session import Session, open_session
from influx.pipelines.tasks import Task
from influx.report.saving import formats
from influx.runfolder import RunFolder
from influx.store import Store

log = logging.getLogger("influx")


def run_command(config: Mapping[str, Any], choices: Mapping[str, str], path: Path, overrides: list[str]) -> float | None:
    """Run `config["command"]` in the run folder `path`; `choices` are the group options by name. Returns a sweeper's objective, if any.

    A logger is told when everything is written. It is no part of the run: not of its digest, nor of what is stored.

    Raises:
        InfluxError: the input is wrong or a computation broke down; `run.json` then says so under `status`.
    """
    folder, logger = RunFolder(path), None
    chosen, config = config.get("logger"), {key: value for key, value in config.items() if key != "logger"}
    folder.start(config["command"], config, overrides)
    folder.record["choices"] = dict(choices)
    try:
        logger = open_logger(chosen)
        place = config["store"].get("dir")
        store = Store(Path(place) if place else None)
        store.check()
        session = open_session(config, choices, folder, store)
        with formats(config["pictures"]):
            result = _dispatch(session)
        returned = None if result is None or math.isnan(result) else result  # JSON has no NaN
        folder.record |= {"status": "finished", "returned": returned}
        log.info("results: %s", path)
        return result
    except BaseException as error:
        folder.record["status"] = f"failed: {error}" if isinstance(error, InfluxError) else f"failed: {type(error).__name__}"
        raise
    finally:
        folder.write_record()
        _tell(logger, folder, config)


def _tell(logger: Logger | None, folder: RunFolder, config: Mapping[str, Any]) -> None:
    trouble = None if logger is None else tell(logger, lambda: account_of(folder.path, folder.record, config))
    if trouble is not None:
        folder.warn(trouble)
        folder.write_record()


def _dispatch(session: Session) -> float | None:
    command = session.config["command"]
    if command == "train":
        train.train(session)
        return None
    estimator = estimate.prepare(session)
    if command == "estimate":
        estimate.estimate(session, estimator)
        return None
    if session.config.get("task") is not None:
        task = build(session.config["task"], Task, "task")
        task.check(session, estimator)
        return task.run(session, estimator)
    retraining = validate.prepare(session, estimator) if session.config["loo"] else None
    return validate.validate(session, estimator, retraining)
