"""Weights & Biases: a run of a project, kept on this machine (no account needed) or sent to a server."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from influx.loggers.account import Account
from influx.loggers.base import Logger
from influx.rules import check_fields


@dataclass(frozen=True)
class Wandb(Logger):
    """Configuration, history by epoch, a summary (statistics, seconds), figures and files of one run.

    `mode` offline writes to `dir` and needs no account; `wandb sync outputs/wandb/wandb/offline-run-*` sends it later. online asks for
    an account when the run ends, unless `wandb login` was done before.
    """

    modules: ClassVar[tuple[str, ...]] = ("wandb",)
    extra: ClassVar[str] = "wandb"
    project: str = "influx"
    entity: str | None = None
    mode: str = "offline"
    dir: str = "outputs/wandb"
    files: bool = True

    def __post_init__(self) -> None:
        check_fields("logger", self)

    def log(self, account: Account) -> None:
        import wandb

        Path(self.dir).mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self.project, entity=self.entity, mode=self.mode, dir=self.dir, name=account.name, group=account.group or None,
            job_type=account.command, config={**account.parameters, "tags": account.tags},
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )  # fmt: skip
        try:
            for row in account.history.to_dict("records"):
                epoch = int(row.pop("epoch"))
                run.log({"epoch": epoch, **{f"training/{name}": value for name, value in row.items() if value == value}}, step=epoch)
            if self.files and account.pictures():
                run.log({f"pictures/{name}": wandb.Image(str(file)) for name, file in account.pictures().items()})
            run.summary.update({**account.metrics, "status": account.status})
            for file in account.files if self.files else ():
                kept = shutil.copy2(file, run.dir)  # not a link: the run folder may move before it is synced
                run.save(kept, base_path=run.dir, policy="now")
        finally:
            run.finish(exit_code=0 if account.finished else 1)
