"""TensorBoard: event files inside the run folder, so that `tensorboard --logdir outputs` shows every run by its place."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from influx.loggers.account import Account
from influx.loggers.base import Logger
from influx.rules import check_fields

FOLDER = "tensorboard"


@dataclass(frozen=True)
class TensorBoard(Logger):
    """Scalars (training by epoch, statistics, seconds), figures, Markdown tables, and under HPARAMS the settings that tell runs apart.

    Written anew when a run is repeated in the same folder.
    """

    modules: ClassVar[tuple[str, ...]] = ("tensorboard",)
    extra: ClassVar[str] = "tensorboard"
    files: bool = True

    def __post_init__(self) -> None:
        check_fields("logger", self)

    def log(self, account: Account) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = account.path / FOLDER
        shutil.rmtree(place, ignore_errors=True)  # of an earlier run
        with SummaryWriter(str(place)) as writer:
            for row in account.history.to_dict("records"):
                for name, value in row.items():
                    if name != "epoch" and not np.isnan(value):
                        writer.add_scalar(f"training/{name}", value, int(row["epoch"]))
            limits = {name: value for name, value in account.metrics.items() if name.endswith(("_ci_low", "_ci_high"))}
            for name, value in limits.items():
                writer.add_scalar(name, value)
            writer.add_text("status", account.status)
            writer.add_text("configuration", "\n".join(f"    {name}: {value}" for name, value in account.flat.items()))
            writer.add_text("tags", "\n".join(f"- {name}: `{value}`" for name, value in account.tags.items()))
            if self.files:
                for name, text in account.texts().items():
                    writer.add_text(name, text)
                for name, picture in account.pictures().items():
                    writer.add_image(name, _pixels(picture), dataformats="HWC")
            values = {name: value for name, value in account.metrics.items() if name not in limits}  # as scalars, too
            writer.add_hparams({**account.main, "status": account.status}, values, run_name=".")


def _pixels(picture: Any) -> np.ndarray:
    """[height, width, 3] of 0 to 255."""
    from PIL import Image

    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))
