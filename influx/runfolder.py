"""A run's folder: every file of the stable interface is written here, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import platform
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save

from influx.configuration import conf_dir
from influx.errors import AccuracyWarning
from influx.provenance import surroundings
from influx.store import digest, write_whole

log = logging.getLogger("influx")

RESULTS = (
    "model.safetensors", "history.csv", "history.png", "influence.npz", "top_influences.csv", "top_influences.png", "diagnostics.csv",
    "class_influence.csv", "class_influence.png", "detection.csv", "detection_seeds.csv", "curve.csv", "detection.png", "suspects.csv",
    "cleansing.csv", "cleansing_seeds.csv", "cleansing.png",
    "weat.csv", "clusters.csv", "explanations.png",
    "documents.csv", "documents.md", "settings.csv", "debiasing.csv", "debiasing_seeds.csv", "debiasing.png",
    "ground_truth.npz", "responses.npz", "correlations.csv", "correlations.md", "per_test.csv", "scatter.png",
    "claims.csv", "claims.md", "cells.csv", "results.csv", "report.html",
)  # fmt: skip
SHOWN_WARNINGS = 3  # of one stage on the screen; the record has them all
LIBRARIES = ("influx", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas", "hydra-core")

AFTERWARDS = (  # make no run's numbers
    "studies", "report", "cli.py", "app.py", "launching.py", "sweeps.py", "sweep_jobs.py", "sweep_scores.py", "sweep_resume.py",
    "sweep_seeds.py", "storekeeping.py", "pipelines/reproduce.py", "runs.py", "run_cards.py", "run_files.py", "finished_run.py",
    "doctor.py", "self_check.py", "installation.py", "machine.py", "finding.py", "completion.py", "flags.py", "plain_settings.py",
    "loggers",
)  # fmt: skip


@cache
def source_digest() -> str:
    """SHA-256 of what runs are made by: code, defaults, libraries, kind of device. A finished run of another one is a stranger."""
    package, conf = Path(__file__).parent, conf_dir()
    files = [file for file in sorted(package.rglob("*.py")) if not file.relative_to(package).as_posix().startswith(AFTERWARDS)]
    files += [file for file in sorted(conf.rglob("*.yaml")) if file.relative_to(conf).parts[0] not in ("study", "logger", "reproduce.yaml")]
    total = hashlib.sha256(b"".join(file.read_bytes() for file in files))
    total.update(f"{[version(name) for name in LIBRARIES]} {torch.cuda.is_available()}".encode())
    return total.hexdigest()


@dataclass
class RunFolder:
    """Writes a run's files and keeps its record (`run.json`): stages with their seconds, warnings, reused artefacts, status."""

    path: Path
    record: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """The record of a run."""
        found: dict[str, Any] = json.loads((path / "run.json").read_text())
        return found

    def start(self, command: str, config: Mapping[str, Any], overrides: list[str]) -> None:
        """Open the record. Results that an earlier run left in the same folder are removed, so that one folder holds one run; not before
        the record says that it is running, or a run killed in between would leave one that says that it has finished."""
        again = (self.path / "run.json").exists()
        self.record |= {
            "command": command,
            "overrides": overrides,
            "config_digest": digest(config),
            "seed": config["seed"],
            "dtype": config["dtype"],
            "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
            "git_commit": _git_commit(),
            "source": source_digest(),
            "surroundings": surroundings(config),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "stage_seconds": {},
            "reused": [],
            "warnings": [],
            "files": [],
            "status": "running",
        }
        self.write_record()
        for name in RESULTS if again else ():
            for file in [name, *(name.replace(".png", kind) for kind in (".pdf", ".svg"))]:
                (self.path / file).unlink(missing_ok=True)

    def write_record(self) -> None:
        write_whole(self.path / "run.json", (json.dumps(self.record, indent=2, default=str) + "\n").encode())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, and put every accuracy warning of it on the screen and in the record."""
        begun = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", AccuracyWarning)
            yield
        self.record["stage_seconds"][name] = round(time.perf_counter() - begun, 3)
        messages = [str(warning.message) for warning in caught if issubclass(warning.category, AccuracyWarning)]
        for message in messages[:SHOWN_WARNINGS]:
            self.warn(message)
        if len(messages) > SHOWN_WARNINGS:
            log.warning("warning: %d more of this kind in run.json", len(messages) - SHOWN_WARNINGS)
            self.record["warnings"] += messages[SHOWN_WARNINGS:]
        self.write_record()

    def warn(self, message: str) -> None:
        self.record["warnings"].append(message)
        log.warning("warning: %s", message)

    def csv(self, name: str, table: pd.DataFrame) -> None:
        self._write(name, table.to_csv(index=False).encode())

    def text(self, name: str, content: str) -> None:
        self._write(name, content.encode())

    def arrays(self, name: str, **arrays: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        self._write(name, buffer.getvalue())

    def parameters(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        self._write(name, save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}))

    def _write(self, name: str, content: bytes) -> None:
        write_whole(self.path / name, content)
        files = self.record.setdefault("files", [])
        if name not in files:
            files.append(name)


def is_finished(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether the folder holds a finished run of this configuration and all its results: by this code, with the user's own classes and
    files as they are."""
    try:
        record = RunFolder.read(path)
    except (OSError, ValueError):
        return False
    if record.get("status") != "finished" or record.get("config_digest") != digest(config):
        return False
    if not all((path / name).is_file() for name in record.get("files", ["all of them"])):  # a record without a list is an older one
        return False
    return record.get("source") == source_digest() and record.get("surroundings") == surroundings(config)


def _git_commit() -> str | None:
    """The commit of the working directory's repository, when it is one."""
    try:
        return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
