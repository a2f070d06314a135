"""`weat.csv`: effect size and p-value of each word association test of a trained model, with the words that it rests on."""

from __future__ import annotations

import logging

import pandas as pd
import torch

from influx.experiment import Trained
from influx.measurements.weat import LISTS, NO_WORD, Weat, associations, permutation_p
from influx.pipelines.session import Session

log = logging.getLogger("influx")


def write_word_tests(session: Session, trained: Trained) -> None:
    """A row a test; nothing for other measurements."""
    experiment = session.experiment
    if not isinstance(experiment.measurement, Weat):
        return
    problem, data = experiment.problem(trained, session.seed), experiment.data
    with torch.no_grad():
        outputs = problem.outputs(problem.theta, problem.test.inputs)
        effects = problem.measured(outputs, problem.test.targets).double().tolist()
        scores, inside = associations(outputs.double(), problem.test.targets)
    rows = []
    for t, name in enumerate(data.test_names):
        x, y = (scores[t][part[t] == 1].cpu().numpy() for part in inside[:2])
        p, partitions, exact = permutation_p(x, y, session.seed)
        used = [data.words[int(word)] for word in problem.test.inputs[t] if int(word) != NO_WORD]
        asked = {word.lower() for key in LISTS for word in experiment.measurement.tests[name][key]}
        rows.append(
            {
                "test": name, "effect_size": effects[t], "p_value": p, "partitions": partitions, "exact": exact,
                "words": " ".join(used), "missing": " ".join(sorted(asked - set(used))),
            }
        )  # fmt: skip
        log.info("WEAT %s: effect size %.3g, p = %.2g (one-sided, %s of %d partitions)", name, effects[t], p,
                 "all" if exact else "a sample", partitions)  # fmt: skip
    session.folder.csv("weat.csv", pd.DataFrame(rows))
