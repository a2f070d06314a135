"""What a run of one objective judged by another refuses or says before it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import call

from influx.errors import InfluxError
from influx.measurements.loss import MeanLoss
from influx.measurements.mean import Mean
from influx.measurements.weat import Weat
from influx.solvers.lissa import Lissa

WORDS = ("dataset=documents", "dataset.path=texts.txt", "objective=skip_gram", "objective.min_count=1")
LISTS = "{X:[a,b],Y:[c,d],A:[e,f],B:[g,h]}"
TINY = ("dataset=iris", "dataset.train_size=20", "dataset.test_size=6", "training=adam", "training.epochs=1", "store.dir=null")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("model=dec", "objective=dec", "objective.recompute=true", "test_points=highest"),
            "test_points=highest keeps one test example, and objective.recompute=true makes its targets of all of them together",
        ),
        ((*WORDS, "model=mlp"), "Mlp reads quantities, and this objective gives it numbers of words: use model=skip_gram"),
        (
            (*WORDS, "model=skip_gram", "measurement=weat", "method=mismatched", "~measurement.tests", f"+measurement.tests.t={LISTS}"),
            "method=mismatched needs a measurement that training examples have as well",
        ),
    ],
)  # fmt: skip
def test_refused_before_training(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(["a b c d e f g h", "h g f e d c b a"] * 4))
    sizes = ("training=adam", "store.dir=null") if "dataset=documents" in words else TINY
    done = call("estimate", *sizes, *words, cwd=tmp_path)
    assert done.status == 2, done.err
    assert said in done.err
    assert not list(tmp_path.glob("outputs/**/model.safetensors"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model=mlp", "objective=dec", "measurement=cluster_loss"), "the clusters of Mlp are matched with no classes"),
        (
            (
                "model=dec",
                "objective=dec",
                "measurement=cluster_loss",
                "training=adam_shared",
                "retraining.removed=2",
                "retraining.seeds=1",
            ),
            "training=adam_shared has one memory a stack of models",
        ),
    ],
)
def test_said_beforehand(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    sizes = tuple(word for word in TINY if not (word.startswith("training") and "training=adam_shared" in words))
    done = call("validate", *sizes, *words, "loo=true", "retraining.removed=2", "method=grad_dot", cwd=tmp_path)
    assert done.status in (0, None), done.err
    assert said in done.out + done.err


def test_test_points_that_are_training_points_are_said_to_be(tmp_path: Path) -> None:
    done = call("train", "dataset=gaussian_mixture", "dataset.points=5", "model=logistic", "store.dir=null", cwd=tmp_path)
    assert "the test examples are the training examples: nothing is held out" in done.out + done.err


def test_a_mean_of_what_is_no_test_example_is_refused() -> None:
    with pytest.raises(InfluxError, match=r"measurement.of=MeanLoss is of a whole set already, or asks questions of its own"):
        Mean(MeanLoss())
    lists = {"X": ["a", "b"], "Y": ["c", "d"], "A": ["e", "f"], "B": ["g", "h"]}
    with pytest.raises(InfluxError, match=r"measurement.of=Weat is of a whole set"):
        Mean(Weat({"one": lists}))


def test_repeats_of_what_is_not_drawn_are_refused() -> None:
    with pytest.raises(InfluxError, match=r"order=sequential draws nothing, so every repeat is the same: set method.solver.repeats=1"):
        Lissa(order="sequential", repeats=2)
