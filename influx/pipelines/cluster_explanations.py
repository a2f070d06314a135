"""For models that cluster: where they put each example, and which training examples move it.

What helpful and harmful mean is the measurement's: `own_cluster_loss` is about the cluster that an example is in (where training starts),
`cluster_loss` about the one matched with its label, which it need not be in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from influx import stacking
from influx.data import Data
from influx.experiment import Trained
from influx.measurements import Measurement
from influx.measurements.cluster_loss import ClusterLoss, scores_of
from influx.measurements.own_cluster_loss import OwnClusterLoss
from influx.objectives.base import Clustering, Unlabelled
from influx.pipelines.exhibits import exhibit, label, ranked
from influx.pipelines.session import Session
from influx.report.explanations import PlanePanel, save_grid, save_planes
from influx.report.gallery import Exhibit, GalleryRow
from influx.runfolder import RunFolder

IN_GRID = 50  # test examples in the picture of images; tables have all
IN_PLANES = 9  # test points that get a panel of their own
SIDES = 3  # most helpful and most harmful of each in the picture


@dataclass(frozen=True)
class Clusters:
    """The most likely cluster of each example under the trained model, and how likely it is. Clusters have the numbers of the classes that
    they were matched with before training."""

    train: Int[np.ndarray, " n_train"]
    test: Int[np.ndarray, " n_test"]
    train_probability: Float[np.ndarray, " n_train"]
    test_probability: Float[np.ndarray, " n_test"]

    def table(self, data: Data) -> pd.DataFrame:
        """A row an example: part, index, its label, its cluster, the cluster's probability."""
        parts = (
            ("train", data.train_index, data.train_targets, self.train, self.train_probability),
            ("test", data.test_index, data.test_targets, self.test, self.test_probability),
        )
        return pd.DataFrame(
            [
                {"part": part, "index": at, "label": label(data, target), "cluster": data.class_names[found], "probability": sure}
                for part, index, targets, clusters, probabilities in parts
                for at, target, found, sure in zip(index, targets, clusters, probabilities, strict=True)
            ]
        )


def clusters(session: Session, trained: Trained) -> Clusters | None:
    """None when the objective is no clustering, or the measurement asks questions of its own."""
    experiment = session.experiment
    if not (isinstance(experiment.objective, Clustering) and isinstance(experiment.objective, Unlabelled) and experiment.gives_classes):
        return None
    problem, found = experiment.problem(trained, session.seed), []
    for examples in (problem.train, problem.test):
        with torch.no_grad():
            parts = [
                scores_of(experiment.objective, problem.outputs(problem.theta, examples.inputs[rows]), "cluster_loss").softmax(-1).max(-1)
                for rows in stacking.blocks(len(examples), 4 * problem.bytes_per_row)
            ]
        found.append([torch.cat(named).cpu().numpy() for named in zip(*parts, strict=True)])
    (train_sure, train), (test_sure, test) = found
    return Clusters(train, test, train_sure, test_sure)


def meaning(measurement: Measurement) -> str:
    """What it means to be helpful (blue) or harmful (red), by the sign that all influences have."""
    if isinstance(measurement, ClusterLoss):
        said = "blue: they draw it to the cluster matched with its label, red: they push it away from there"
    elif isinstance(measurement, OwnClusterLoss):
        said = "blue: they keep it in the cluster that it began in, red: they push it out of there"
    else:
        said = "blue: without them what is measured would be higher, red: lower"
    return f"{said} (influence in {measurement.unit})"


def explain(
    folder: RunFolder,
    data: Data,
    made: Clusters,
    influence: Float[np.ndarray, "n_train n_test"],
    *,
    measurement: Measurement,
    pictures: bool,
) -> None:
    """`clusters.csv`, and for images and points in the plane `explanations.png`."""
    says = meaning(measurement)
    folder.csv("clusters.csv", made.table(data))
    if not pictures:
        return
    if data.is_image:
        save_grid(_grid(data, made, influence), folder.path / "explanations.png", says=says)
    elif data.input_shape == (2,):
        save_planes(_planes(data, made, influence), folder.path / "explanations.png", says=says, names=data.feature_names or ("x", "y"))


def with_clusters(table: pd.DataFrame, data: Data, made: Clusters) -> pd.DataFrame:
    """`top_influences.csv` with the clusters of both examples."""
    names = np.array(data.class_names)
    test, train = (
        dict(zip(index, names[found], strict=True)) for index, found in ((data.test_index, made.test), (data.train_index, made.train))
    )
    return table.assign(test_cluster=table["test_index"].map(test), train_cluster=table["train_index"].map(train))


def _grid(data: Data, made: Clusters, influence: Float[np.ndarray, "n_train n_test"]) -> list[GalleryRow]:
    rows = []
    for t, (helpful, harmful) in enumerate(ranked(influence, SIDES)[:IN_GRID]):
        sides = [[(_shown(data, "train", i, made), float(influence[i, t])) for i in side] for side in (helpful, harmful)]
        rows.append(GalleryRow(_shown(data, "test", t, made), sides[0], sides[1]))
    return rows


def _shown(data: Data, part: str, row: int, made: Clusters) -> Exhibit:
    return exhibit(data, part, row, _said(data, part, row, made))


def _said(data: Data, part: str, row: int, made: Clusters) -> str:
    found = (made.train if part == "train" else made.test)[row]
    target = (data.train_targets if part == "train" else data.test_targets)[row]
    return f"{label(data, target)} in {data.class_names[found]}"


def _planes(data: Data, made: Clusters, influence: Float[np.ndarray, "n_train n_test"]) -> list[PlanePanel]:
    """The points whose influences are largest, from each cluster in turn."""
    order = np.argsort(-np.abs(influence).max(0), kind="stable")
    turn = np.array([(made.test[order[:at]] == made.test[t]).sum() for at, t in enumerate(order)])
    chosen = order[np.lexsort((np.arange(len(order)), turn))][:IN_PLANES]
    points, tests = (part.double().cpu().numpy() for part in (data.train_inputs, data.test_inputs))
    titles = {t: f"test {data.test_index[t]}: {_said(data, 'test', t, made)}" for t in chosen}
    return [PlanePanel(titles[t], points, made.train, influence[:, t], tests[t]) for t in chosen]
