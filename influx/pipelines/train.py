"""`influx train`: one model, its training record, its loss curve."""

from __future__ import annotations

import logging

import pandas as pd

from influx.experiment import Trained
from influx.pipelines.session import Session
from influx.report.plots import save_history

log = logging.getLogger("influx")


def train(session: Session) -> Trained:
    """Train on all examples, or take the same training from the store; write parameters and history."""
    folder = session.folder
    with folder.stage("train"):
        trained = session.experiment.train(session.seed, session.store, checkpoints=session.config["checkpoints"])
    if trained.reused:
        folder.record["reused"].append("model")
    history = pd.DataFrame(trained.history).astype({"epoch": int})
    folder.parameters("model.safetensors", {**trained.params, **trained.buffers})
    folder.csv("history.csv", history)
    if session.config["pictures"]:
        save_history(history, folder.path / "history.png")
    last = history.iloc[-1]
    accuracy = "" if pd.isna(last.accuracy) else f", training accuracy {last.accuracy:.3f}"
    how = "reused from the store" if trained.reused else f"in {trained.seconds:.1f} s"
    log.info("trained %s: loss %.4g%s, gradient norm %.1e", how, last.loss, accuracy, trained.gradient_norm)
    return trained
