"""Skip-gram with negative sampling: windows and loss against loops, derivatives against plain autograd, and texts that cannot be used."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import call
from problems import data
from torch import Tensor

from influx.curvature import Curvature
from influx.datasets.documents import Documents
from influx.errors import AccuracyWarning, InfluxError
from influx.experiment import Experiment
from influx.measurements.displacement import Displacement
from influx.measurements.loss import Loss
from influx.measurements.weat import Weat
from influx.models import build
from influx.models.base import Shape
from influx.models.skip_gram import SkipGramVectors, WordVectors
from influx.objectives.skip_gram import NOTHING, SkipGram, tokens
from influx.problem import Problem
from influx.store import Store
from influx.training.first_order import Adam

TEXTS = (
    "The cat sat on the mat; the dog sat too.",
    "A dog and a cat: the cat ran, the dog ran!",
    "On the mat the cat and the dog sat, and sat.",
    "Rain and sun, sun and rain, the mat and the sun.",
    "The sun sat on the cat and the rain ran on.",
    "Dog, cat, sun, rain, mat: the end of the rain.",
)
OBJECTIVE = SkipGram(window=2, negatives=3, min_count=2)
LISTS = {"X": ["cat", "dog"], "Y": ["sun", "rain"], "A": ["sat", "ran"], "B": ["mat", "on"]}


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS))
    return str(file)


def loaded(path: str, objective: SkipGram = OBJECTIVE, **options: object):
    return objective.prepare(Documents(path=path, train_size=4, test_size=2, **options).load())


def fitted(path: str, objective: SkipGram = OBJECTIVE, measurement=None) -> Problem:
    texts = loaded(path, objective)
    measurement = Weat({"animals": LISTS}) if measurement is None else measurement
    texts = measurement.pose(texts) if isinstance(measurement, Weat) else texts
    made = Experiment(texts, SkipGramVectors(width=3), Adam(lr=0.1, epochs=8, batch_size=2, weight_decay=0.01), objective, measurement)
    return made.problem(made.train(0, Store(None)), 0)


def test_words_are_letters_in_lower_case() -> None:
    assert tokens("It's 3 o'clock, Über-cool_stuff!") == ["it's", "o'clock", "über", "cool", "stuff"]


def test_windows_are_all_pairs_of_words_near_each_other(path: str) -> None:
    made = loaded(path)
    known = {word: number for number, word in enumerate(made.words)}
    for row, position in zip(made.train_inputs, made.train_index, strict=True):
        ids = [known[word] for word in tokens(TEXTS[position]) if word in known]
        wanted = [(ids[a], ids[b]) for a in range(len(ids)) for b in range(len(ids)) if a != b and abs(a - b) <= OBJECTIVE.window]
        pairs = [tuple(pair) for pair in row[row[:, 0] != NOTHING][:, :2].tolist()]
        assert sorted(pairs) == sorted(wanted)
        assert bool((row[len(wanted) :] == NOTHING).all())


def test_the_vocabulary_is_of_the_training_part_and_ordered_by_use(path: str) -> None:
    made = loaded(path)
    train = [word for position in made.train_index for word in tokens(TEXTS[position])]
    assert set(made.words) == {word for word in train if train.count(word) >= 2}
    assert [train.count(word) for word in made.words] == sorted((train.count(word) for word in made.words), reverse=True)
    assert loaded(path, replace(OBJECTIVE, vocabulary=3)).words == made.words[:3]


def test_a_document_brings_the_same_pairs_whatever_else_trains(path: str) -> None:
    first = OBJECTIVE.prepare(Documents(path=path, train_index=[0, 1, 2, 3], test_index=[4]).load())
    other = OBJECTIVE.prepare(Documents(path=path, train_index=[3, 1, 2, 0], test_index=[5]).load())
    same = first.train_inputs.shape[1] and [0, 1, 2, 3]
    for position in same:
        a, b = (made.train_inputs[list(made.train_index).index(position)] for made in (first, other))
        length = min(len(a), len(b))
        assert torch.equal(a[:length], b[:length])


def test_negatives_follow_counts_to_three_quarters(tmp_path: Path) -> None:
    file = tmp_path / "many.txt"
    file.write_text("\n".join(["one one one one one one two two three"] * 400))
    made = SkipGram(window=4, negatives=5, min_count=1).prepare(Documents(path=str(file), train_size=390, test_size=10).load())
    drawn = made.train_inputs[..., 2:][made.train_inputs[..., 0] != NOTHING]
    shares = np.bincount(drawn.flatten().numpy(), minlength=3) / drawn.numel()
    wanted = np.array([6, 2, 1]) ** 0.75
    np.testing.assert_allclose(shares, wanted / wanted.sum(), atol=5 * math.sqrt(0.25 / drawn.numel()))  # five standard errors


def test_long_documents_keep_evenly_spaced_pairs(path: str) -> None:
    made = loaded(path, replace(OBJECTIVE, max_pairs=7))
    assert made.train_inputs.shape[1] == 7
    whole, few = loaded(path).train_inputs[0, :, :2], made.train_inputs[0, :, :2]
    count = int((whole[:, 0] != NOTHING).sum())
    assert torch.equal(few, whole[np.linspace(0, count - 1, 7).round().astype(int)])


def plain(problem: Problem, centre: Tensor, context: Tensor) -> list[Tensor]:
    """Σ over a document's pairs of −log σ(u·v_o) − Σ log σ(−u·v_n), over the mean number of pairs a document."""
    sums, counts = [], []
    for row in problem.train.inputs:
        pairs = row[row[:, 0] != NOTHING].tolist()
        total = torch.zeros((), dtype=centre.dtype)
        for word, near, *away in pairs:
            total = total - torch.sigmoid(centre[word] @ context[near]).log()
            for other in away:
                total = total - torch.sigmoid(-(centre[word] @ context[other])).log()
        sums.append(total)
        counts.append(len(pairs))
    return [total / (sum(counts) / len(counts)) for total in sums]


def test_loss_gradients_and_curvature_are_those_of_the_loops(path: str) -> None:
    problem = fitted(path)
    tables = [problem.params[f"{name}.weight"].clone().requires_grad_(True) for name in ("centre", "context")]
    wanted = plain(problem, *tables)
    with torch.no_grad():
        torch.testing.assert_close(problem.losses(problem.theta, problem.train), torch.stack(wanted).detach())
    slopes = [torch.cat([part.flatten() for part in torch.autograd.grad(loss, tables, retain_graph=True)]) for loss in wanted]
    found = torch.cat([made for _, made in problem.train_gradients()])
    torch.testing.assert_close(found, torch.stack(slopes))

    def mean(theta: Tensor) -> Tensor:
        size = tables[0].numel()
        return torch.stack(plain(problem, theta[:size].view_as(tables[0]), theta[size:].view_as(tables[1]))).mean()

    hessian = torch.autograd.functional.hessian(mean, problem.theta.clone())
    eye = torch.eye(problem.n_params, dtype=torch.float64)
    torch.testing.assert_close(Curvature(problem, "hessian", 0.5).dense(), hessian + 0.51 * eye)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_products_in_wide_blocks_are_those_in_narrow_ones(path: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a kept graph, a vector at a time, and the outputs' curvature multiplied with instead of formed."""
    problem = fitted(path)
    vectors = torch.randn(problem.n_params, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = Curvature(problem, kind, 0.1).matmat(vectors)
    monkeypatch.setattr("influx.curvature.PRODUCT_BYTES", 1)
    monkeypatch.setattr("influx.curvature.WIDE", 1)
    torch.testing.assert_close(Curvature(problem, kind, 0.1).matmat(vectors), wanted)


def test_forward_passes_along_vectors_are_products_with_gradients(path: str) -> None:
    problem = fitted(path)
    few = torch.randn(problem.n_params, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = torch.cat([made for _, made in problem.train_gradients()]) @ few
    torch.testing.assert_close(problem.along(few), wanted)
    many = few.repeat(1, 4)  # more than are taken one by one
    torch.testing.assert_close(problem.along(many), wanted.repeat(1, 4))


def test_scores_and_vectors_of_the_model() -> None:
    module = WordVectors(5, 3).double()
    centre, context = module.centre.weight.detach(), module.context.weight.detach()
    windows = torch.tensor([[[1, 2, 0], [NOTHING] * 3], [[4, 4, 3], [0, 1, 2]]])
    scores = module(windows).detach().view(2, 2, 2)
    assert scores[0, 0, 0] == pytest.approx(float(centre[1] @ context[2]))
    assert scores[1, 1, 1] == pytest.approx(float(centre[0] @ context[2]))
    assert scores[0, 1].tolist() == [0.0, 0.0]
    words = module(torch.tensor([[3, NOTHING]])).detach().view(2, 3)
    torch.testing.assert_close(words, torch.stack([centre[3], torch.zeros(3, dtype=torch.float64)]))


def test_training_starts_where_word2vec_does() -> None:
    module = build(SkipGramVectors(width=10), Shape((4, 3), 8, "regression", 50), 0)
    assert bool((module.context.weight == 0).all())
    assert 0.04 < float(module.centre.weight.detach().abs().max()) <= 0.05


def test_displacement_of_scores_runs_from_the_start(path: str) -> None:
    assert fitted(path, measurement=Displacement()).test_gradients().isfinite().all()
    assert fitted(path, measurement=Loss()).n_test == 2


def test_documents_of_a_folder_and_of_a_file(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    for number, text in enumerate(TEXTS):
        (folder / ("more" if number > 3 else "") / f"{number}.txt").write_text(text)
    assert Documents(path=str(folder)).read().texts == TEXTS
    assert Documents(path=path).read().texts == TEXTS


def test_empty_documents_keep_their_place_and_are_said(tmp_path: Path) -> None:
    file = tmp_path / "gaps.txt"
    file.write_text("\n".join([*TEXTS, "", "unheard words"]))
    with pytest.warns(AccuracyWarning, match=r"2 training document\(s\) have no two words .* \(positions 6, 7\): they train nothing"):
        made = OBJECTIVE.prepare(Documents(path=str(file), train_index=[0, 1, 2, 3, 6, 7], test_index=[4, 5]).load())
    assert bool((made.train_inputs[4:] == NOTHING).all())


def test_what_cannot_be_used_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InfluxError, match=r"dataset.path=nowhere.txt does not exist: name a text file"):
        Documents(path="nowhere.txt").load()
    one = tmp_path / "one.txt"
    one.write_text("only one document\n\n")
    with pytest.raises(InfluxError, match=r"has fewer than two documents that are not empty"):
        Documents(path=str(one)).load()
    with pytest.raises(InfluxError, match=r"has 0 word\(s\) that its training part uses 99 times or more: lower objective.min_count"):
        loaded(path, replace(OBJECTIVE, min_count=99))
    with pytest.raises(InfluxError, match=r"objective=skip_gram reads texts, and tiny has none"):
        OBJECTIVE.prepare(data("softmax"))
    with pytest.raises(InfluxError, match=r"model=skip_gram is a table of words, and this data has none"):
        build(SkipGramVectors(), Shape((4,), 3, "classification"), 0)
    alone = tmp_path / "alone.txt"
    alone.write_text("word\nword\nword\nother\nother\nother")
    with pytest.warns(AccuracyWarning), pytest.raises(InfluxError, match=r"no document of documents has two words of the vocabulary"):
        SkipGram(min_count=1).prepare(Documents(path=str(alone)).load())


def test_a_run_writes_effect_sizes_with_their_p_values(path: str, tmp_path: Path) -> None:
    lists = ",".join(f"{key}:[{','.join(words)}]" for key, words in LISTS.items())
    command = (
        "estimate", "dataset=documents", f"dataset.path={path}", "dataset.train_size=4", "objective=skip_gram", "objective.min_count=2",
        "objective.window=2", "model=skip_gram", "model.width=3", "measurement=weat", f"+measurement.tests.animals={{{lists}}}",
        *(f"~measurement.tests.{name}" for name in ("career", "numbers_arts", "science_arts", "career_held_out")),
        "training=adam", "training.epochs=2", "method=grad_dot",
    )  # fmt: skip
    done = call(*command, cwd=tmp_path)
    assert done.status in (0, None), done.err
    (folder,) = (tmp_path / "outputs" / "estimate" / "runs").iterdir()
    table = pd.read_csv(folder / "weat.csv")
    assert list(table["test"]) == ["animals"]
    assert table["p_value"][0] * 6 == pytest.approx(round(table["p_value"][0] * 6))  # of C(4, 2) partitions
    refused = call(*command, "measurement.tests={other:{X:[cat,dog]}}", cwd=tmp_path)
    assert refused.status == 2
    assert "word tests have names of their own: add one with '+measurement.tests.<name>=" in refused.err
    assert set(table["words"][0].split()) == {word for words in LISTS.values() for word in words}
