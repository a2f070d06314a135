"""MLflow: a run in an experiment, in a local SQLite file or on a server."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock

from influx.loggers.account import Account
from influx.loggers.base import Logger
from influx.rules import check_fields

LOCAL = Path("outputs/mlflow")  # the default's place: mlflow.db, and artifacts/ with the files
LONGEST = 500  # characters of a parameter that every server takes
AT_ONCE = 100  # of a batch that every server takes
RETRIES = "2"  # of a request to a server that does not answer, unless the environment says otherwise: MLflow itself waits for minutes
NOISY = ("alembic", "mlflow", "urllib3")


@dataclass(frozen=True)
class Mlflow(Logger):
    """Parameters, metrics (training by epoch, statistics, seconds), files and tags of one run.

    `uri` null is the environment's MLFLOW_TRACKING_URI, and without one the file outputs/mlflow/mlflow.db, which
    `mlflow ui --backend-store-uri sqlite:///outputs/mlflow/mlflow.db` shows. MLflow itself no longer takes a plain folder.
    """

    modules: ClassVar[tuple[str, ...]] = ("mlflow", "sqlalchemy", "alembic")
    extra: ClassVar[str] = "mlflow"
    uri: str | None = None
    experiment: str = "influx"
    files: bool = True

    def __post_init__(self) -> None:
        check_fields("logger", self)

    def log(self, account: Account) -> None:
        from mlflow.tracking import MlflowClient

        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", RETRIES)
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or _local()
        with _alone(uri):  # the first process makes the tables, and the experiment
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            experiment = self._experiment(client, uri)
        begun = int(account.begun * 1000)  # milliseconds
        run = client.create_run(experiment, start_time=begun, tags=account.tags, run_name=account.name).info.run_id
        try:
            _send(client, run, account)
            for file in account.files if self.files else ():
                client.log_artifact(run, str(file))
        finally:
            client.set_terminated(run, _status(account))

    def _experiment(self, client: Any, uri: str) -> str:
        found = client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        local = _database(uri)
        place = (local.parent / "artifacts" / self.experiment).as_uri() if local else None  # a server has a place of its own
        return str(client.create_experiment(self.experiment, artifact_location=place))


def _send(client: Any, run: str, account: Account) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    params = [Param(name, str(value)[:LONGEST]) for name, value in account.flat.items()]
    metrics = [Metric(name, value, now, 0) for name, value in account.metrics.items()]
    for row in account.history.to_dict("records"):
        epoch = int(row.pop("epoch"))
        metrics += [Metric(f"training/{name}", value, now, epoch) for name, value in row.items() if value == value]  # not NaN
    for part in _parts(params):
        client.log_batch(run, params=part)
    for part in _parts(metrics):
        client.log_batch(run, metrics=part)


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    yield from (items[at : at + AT_ONCE] for at in range(0, len(items), AT_ONCE))


def _status(account: Account) -> str:
    return "FINISHED" if account.finished else "KILLED" if account.status == "failed: KeyboardInterrupt" else "FAILED"


def _local() -> str:
    return f"sqlite:///{(LOCAL / 'mlflow.db').resolve()}"


def _database(uri: str) -> Path | None:
    """The file of a local SQLite store."""
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def _alone(uri: str) -> AbstractContextManager[Any]:
    """A lock beside a local store's file; a server sees to it itself."""
    database = _database(uri)
    if database is None:
        return nullcontext()
    database.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{database}.lock")
