"""`influx validate`: estimate, retrain with examples left out, and say how well the two agree."""

from __future__ import annotations

import io
import logging
import math
from dataclasses import asdict

import numpy as np
import pandas as pd
from jaxtyping import Float
from rich.console import Console

from influx.errors import InfluxError
from influx.estimators import Estimator
from influx.instantiate import build
from influx.pipelines.estimate import Estimated, estimate, write_diagnostics
from influx.pipelines.session import Session
from influx.report.plots import save_scatter
from influx.report.tables import correlation_lines, to_markdown, verdict
from influx.responses.bregman import Bregman
from influx.responses.choice import RETRAIN
from influx.retraining import Retraining
from influx.statistics import compare, per_test
from influx.training.adam_shared import AdamShared
from influx.truth import Truth

log = logging.getLogger("influx")

PBRF = Bregman.name
DRIFT = 0.1  # of the spread over removals: more of it is worth a warning
HEADLINE = "Spearman (mean over test examples)"
VARIED = {"init": "initialisation", "order": "batch order"}
NO_TRUTH = (
    "loo=false: nothing was retrained, so nothing says whether these estimates are right. What can still be compared: estimates with one "
    "another (-m method=exact,cg,lissa), top_influences.png with your own eyes, diagnostics.csv with the solver's promises."
)


def prepare(session: Session, estimator: Estimator) -> Retraining:
    """The retraining plan, checked against data, training and method before anything is trained."""
    node = session.config["retraining"]
    if session.config["truth"] == PBRF:
        if node.get("response", PBRF) not in (RETRAIN, PBRF):
            raise InfluxError(f"truth=pbrf means retraining.response=pbrf, not {node['response']}: use truth=loo, or leave it out.")
        node = {**node, "response": PBRF}
    retraining = build(node, Retraining, "retraining")
    retraining = retraining.after(session.choices["method"], vars(estimator).get("damping"))
    if isinstance(session.experiment.training, AdamShared) and retraining.models_at_once is None:
        session.folder.warn(
            "training=adam_shared has one memory a stack of models, and how many share one depends on the model's size: set "
            "retraining.models_at_once to at least the number of removals."
        )
    retraining.check(_kind(session), session.experiment, session.memory)
    params = estimator.params
    if params != retraining.trainable:
        session.folder.warn(
            f"the estimate moves method.params={params} and the truth retraining.trainable={retraining.trainable}: "
            "they answer different questions, and low agreement need not be the estimator's fault."
        )
    return retraining


def _kind(session: Session) -> str:
    """What is left out: "loo", "subset" or "group"."""
    truth = session.config["truth"]
    return "loo" if truth == PBRF else truth


def validate(session: Session, estimator: Estimator, retraining: Retraining | None) -> float | None:
    """Estimate, retrain, compare; the returned mean Spearman is what a Hydra sweeper can optimise. `retraining` null skips the truth."""
    made = estimate(session, estimator)
    if retraining is None:
        log.info(NO_TRUTH)
        return None
    session = made.session
    truth = _truth(session, made, retraining)
    predicted = truth.removals.predicted(made.influence) * retraining.strength
    options = {"calibrated": estimator.calibrated, "resamples": session.config["resamples"], "seed": session.seed}
    with session.folder.stage("compare"):
        table = compare(predicted, truth.change, **options)
        each = per_test(predicted, truth.change)
        each.insert(0, "test_index", made.test_index)
        session.folder.csv("per_test.csv", each)
        _write_tables(session, table, retraining)
        if session.config["pictures"]:
            _draw(session, made, truth, predicted, table, each)
    write_diagnostics(session, [*made.solves, *truth.solves], made.test_index)
    spearman = float(table.set_index("statistic").value["spearman"])
    session.folder.record["spearman"] = None if math.isnan(spearman) else spearman  # JSON has no NaN
    _say(session, table, truth, retraining)
    return spearman


def _truth(session: Session, made: Estimated, retraining: Retraining) -> Truth:
    experiment, folder, seed, store = session.experiment, session.folder, session.seed, session.store
    sets = retraining.choose(_kind(session), experiment, made.influence, made.train_losses, seed)
    with folder.stage("predict"):
        plan = retraining.plan(experiment, made.trained, sets, seed, store)
        ahead = retraining.seconds(plan, experiment, made.trained, sets, seed, store)
    how = {"removed subset": "on each of %d random subsets", "removed group": "without each of %d groups"}
    said = how.get(sets.unit, "without each of %d examples") % len(sets)
    log.info("%s %s, %d seed(s): about %.0f s", _doing(retraining), said, retraining.seeds, ahead)
    with folder.stage("retrain"):
        truth = retraining.run(experiment, made.trained, sets, seed, store, plan)
    if truth.reused:
        folder.record["reused"].append(f"{truth.reused} of {truth.shards} retraining shards")
    folder.record["zero_removal_control"] = asdict(truth.control)
    if truth.facts:
        folder.record.setdefault("facts", {}).update(truth.facts)
    _warn_of_drift(session, retraining, truth)
    _write_truth(session, made, truth)
    return truth


def _doing(retraining: Retraining) -> str:
    return "retraining" if retraining.response == RETRAIN else f"{retraining.response} response"


def _write_truth(session: Session, made: Estimated, truth: Truth) -> None:
    """`ground_truth.npz`, and `responses.npz` when models are kept."""
    sets, train_index = truth.removals, session.experiment.data.train_index
    arrays = {"change": truth.change, "full": truth.full, "seed": truth.seeds, "test_index": made.test_index}
    if sets.rows is not None:
        left_out = {"train_index": train_index[sets.rows]}
    else:  # `removed[j, i]`: whether removal j leaves out training example train_index[i]
        left_out = {"train_index": train_index, "removed": sets.mask(len(train_index))}
    session.folder.arrays("ground_truth.npz", **arrays, **left_out)
    if truth.responses is not None:  # `output_index`: the training examples, in the order of the outputs
        session.folder.arrays("responses.npz", **vars(truth.responses), **left_out, output_index=train_index, seed=truth.seeds)


def _warn_of_drift(session: Session, retraining: Retraining, truth: Truth) -> None:
    drift, spread = truth.control.median_measurement_change, float(np.median(truth.change.mean(2).std(0)))
    drifts = retraining.start == "warm" if retraining.response == RETRAIN else retraining.response == "proximal"
    if drifts and not retraining.subtract_drift and drift > DRIFT * spread:
        alone = "further training" if retraining.response == RETRAIN else "the proximal response with nothing removed"
        session.folder.warn(
            f"{alone} alone moves the measurement by {drift:.2g}, and what is removed makes a difference of {spread:.2g} "
            "(medians): pooled statistics, slope and rmse are about that drift. retraining.subtract_drift=true takes it out."
        )


def _write_tables(session: Session, table: pd.DataFrame, retraining: Retraining) -> None:
    kind, choices = _kind(session), session.choices
    truth = retraining.name if (kind, retraining.response) == ("loo", PBRF) else f"{kind}_{retraining.name}"
    identity = {"method": choices["method"], "truth": truth, "measurement": choices["measurement"]}
    full = pd.DataFrame([{**identity, **row} for row in table.to_dict("records")])
    session.folder.csv("correlations.csv", full)
    session.folder.record |= {"table": "correlations.csv", "headline": {"statistic": "spearman", "label": HEADLINE}}
    session.folder.text("correlations.md", to_markdown(full))


def _draw(
    session: Session,
    made: Estimated,
    truth: Truth,
    predicted: Float[np.ndarray, "n_removed n_test"],
    table: pd.DataFrame,
    each: pd.DataFrame,
) -> None:
    mean = truth.change.mean(2)
    pairs = pd.DataFrame({"predicted": predicted.ravel(), "actual": mean.ravel()})
    if truth.change.shape[2] > 1:
        pairs["actual_se"] = (truth.change.std(2, ddof=1) / np.sqrt(truth.change.shape[2])).ravel()
    data, unit = session.experiment.data, session.experiment.measurement.unit
    title = f"{session.choices['method']} on {data.name}, {type(session.experiment.model).__name__.lower()}"
    picture = session.folder.path / "scatter.png"
    save_scatter(pairs, each[["test_index", "spearman"]], table, picture, unit=unit, calibrated=made.estimator.calibrated, title=title)


def _say(session: Session, table: pd.DataFrame, truth: Truth, retraining: Retraining) -> None:
    screen = Console(width=100, file=io.StringIO())
    screen.print(correlation_lines(table, truth.removals.unit))
    log.info("%s", screen.file.getvalue().rstrip())  # type: ignore[attr-defined]
    for line in verdict(table, truth.removals.unit):
        log.info("%s", line)
    varied = VARIED.get(retraining.vary)
    if varied is not None and len(truth.seeds) > 1:
        log.info("Only the %s varied between seeds: the ceiling is about that noise alone.", varied)
    control = truth.control
    log.info(
        "control: %s with nothing left out moves the measurement by at most %.2g alone, %.2g among the others", _doing(retraining),
        control.largest_measurement_change, control.largest_measurement_change_in_stacks,
    )  # fmt: skip
    if session.config["pictures"]:
        log.info("scatter plot: %s", session.folder.path / "scatter.png")
