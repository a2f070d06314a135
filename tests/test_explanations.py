"""What is said of clusters: tables against the model's own outputs, pictures that are whole and say what helpful means."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from conftest import call
from matplotlib.figure import Figure

from influx.measurements.cluster_loss import ClusterLoss
from influx.measurements.displacement import Displacement
from influx.pipelines.cluster_explanations import meaning
from influx.report.explanations import PlanePanel, save_grid, save_planes
from influx.report.gallery import Exhibit, GalleryRow

SAYS = meaning(ClusterLoss())  # the longest
RUN = (
    "estimate", "dataset=digits", "dataset.train_size=40", "dataset.test_size=6", "model=dec", "model.width=8", "model.embedding=4",
    "objective=dec", "training=lbfgs", "training.weight_decay=0.01", "training.max_iterations=40", "method=grad_dot", "top_k=2",
)  # fmt: skip


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """A path to save to, and a check: nothing reaches over the figure's edge, no global setting changed; it gives all texts."""
    figures, settings = [], dict(matplotlib.rcParams)
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **more: (save(figure, path, **more), figures.append(figure)))

    def check():
        (figure,) = figures
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0) > -0.02
        assert box.x1 < width + 0.02
        assert box.y1 < height + 0.02
        assert dict(matplotlib.rcParams) == settings
        return figure

    return tmp_path / "figure.png", check


def image(title: str) -> Exhibit:
    return Exhibit(title, np.random.default_rng(len(title)).random((1, 8, 8)))


def row(title: str, k: int) -> GalleryRow:
    side = [(image(title), 0.1)] * k
    return GalleryRow(image(title), side, side)


@pytest.mark.parametrize("rows", [1, 2, 50])
@pytest.mark.parametrize("title", ["7 in 9", "T-shirt/top in Ankle boot"])
def test_grid_is_whole_and_its_titles_do_not_meet(drawn, rows, title):
    path, check = drawn
    save_grid([row(title, 3)] * rows, path, says=SAYS)
    figure = check()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 2 + 7 * rows
    assert not any(a.shrunk(0.98, 0.98).overlaps(b.shrunk(0.98, 0.98)) for n, a in enumerate(boxes[:30]) for b in boxes[:n])


@pytest.mark.parametrize("panels", [1, 4])
def test_planes_mark_the_test_point_and_colour_by_influence(drawn, panels):
    path, check = drawn
    rng = np.random.default_rng(0)
    points, clusters, influence = rng.normal(size=(12, 2)), np.arange(12) % 3, rng.normal(size=12)
    panel = PlanePanel("test 1: a in b", points, clusters, influence, np.array([0.5, -0.5]))
    save_planes([panel] * panels, path, says=SAYS, names=("x", "y"))
    figure = check()
    ax = figure.axes[0]
    assert len(ax.collections) == 3  # a marker a cluster
    shown = {tuple(at): value for part in ax.collections for at, value in zip(part.get_offsets(), part.get_array(), strict=True)}
    assert shown == {tuple(at): value for at, value in zip(points, influence, strict=True)}
    assert ax.lines[0].get_xydata().tolist() == [[0.5, -0.5]]
    assert all(part.get_clim() == (-np.abs(influence).max(), np.abs(influence).max()) for part in ax.collections)


def test_helpful_is_said_in_the_measurements_own_terms():
    assert "the cluster matched with its label" in meaning(ClusterLoss())
    assert "cluster" not in meaning(Displacement())
    assert meaning(Displacement()).endswith(f"(influence in {Displacement.unit})")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    done = call(*RUN, "measurement=cluster_loss", cwd=tmp_path_factory.mktemp("run"), pictures=True)
    assert done.status in (0, None), done.err
    return done.folder


def test_tables_have_the_clusters_of_both_examples(folder):
    clusters, top = (pd.read_csv(folder / name) for name in ("clusters.csv", "top_influences.csv"))
    assert list(clusters.columns) == ["part", "index", "label", "cluster", "probability"]
    assert clusters["part"].value_counts().to_dict() == {"train": 40, "test": 6}
    assert clusters["probability"].between(0.1, 1.0).all()  # the most likely of ten
    for part in ("train", "test"):
        place = clusters[clusters["part"] == part].set_index("index")["cluster"]
        assert (top[f"{part}_cluster"] == top[f"{part}_index"].map(place)).all()
    with np.load(folder / "influence.npz", allow_pickle=False) as saved:
        assert set(saved["test_index"]) == set(clusters[clusters["part"] == "test"]["index"])


def test_run_draws_the_explanations(folder):
    assert (folder / "explanations.png").read_bytes().startswith(b"\x89PNG")
