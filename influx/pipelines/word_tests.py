"""`weat.csv`: what the word association tests say of the trained model, with p-values and the words that they rest on."""

from __future__ import annotations

import pandas as pd
import torch

from influx.measurements.weat import Weat, associations, permutation_p, words_of
from influx.pipelines.session import Session
from influx.problem import Problem


def write(session: Session, problem: Problem) -> dict[str, float]:
    """Write a row a test (`test`, `effect_size`, one-sided `p`, the number of `partitions` behind it, whether they are all of them
    (`exact`), the words `used` and `missing`); returns effect sizes and p-values as facts of the run. Nothing for other measurements.
    """
    measurement, data = session.experiment.measurement, session.experiment.data
    if not isinstance(measurement, Weat):
        return {}
    with torch.no_grad():
        outputs = problem.outputs(problem.theta, problem.test.inputs)
        effects = problem.measured(outputs, problem.test.targets).tolist()
        scores, (x, y, _, _) = associations(outputs.double(), problem.test.targets)
    rows = []
    for column, (name, effect) in enumerate(zip(data.test_names, effects, strict=True)):
        mine, others = (scores[column, part[column] > 0].cpu().numpy() for part in (x, y))
        p, partitions, exact = permutation_p(mine, others, session.seed)
        used, missing = words_of(measurement.tests[name], data.words)
        row = {"test": name, "effect_size": effect, "p": p, "partitions": partitions, "exact": exact}
        rows.append({**row, "used": "; ".join(used), "missing": "; ".join(missing)})
    session.folder.csv("weat.csv", pd.DataFrame(rows))
    return {f"{what}:{row['test']}": float(row[key]) for row in rows for what, key in (("weat", "effect_size"), ("p", "p"))}
