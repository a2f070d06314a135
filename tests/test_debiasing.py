"""Which documents raise a bias, and what undoes it: on documents whose bias is known, each number against a second way to it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Ran, call
from corpora import HERS, HIS, HOME, WORK, Biased, write_options
from safetensors.numpy import load_file

from influx.objectives.skip_gram import tokens
from influx.pipelines.tasks.documents import documents_table, documents_text
from influx.report.debiasing import debiasing_verdict

PAIRS = "task.rival.definitional=[[she,he],[her,him],[woman,man]]"
FEW = ("task.held_out=kept_back", "task.share=0.15", "task.random_sets=4", "task.documents=[3,9]", "task.steps=[2,6]", PAIRS)
RUN = ("task=debiasing", "method=grad_dot", *FEW)


def run(cwd: Path, *words: str, pictures: bool = False) -> Ran:
    """The task on the made-up corpus; `words` win."""
    return call("validate", *write_options(cwd), *RUN, *words, cwd=cwd, pictures=pictures)


def seeds(folder: Path) -> pd.Series:
    """debiasing_seeds.csv by seed, score and statistic."""
    return pd.read_csv(folder / "debiasing_seeds.csv").set_index(["seed", "score", "statistic"])["value"].sort_index()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    done = run(tmp_path_factory.mktemp("debiasing"), "task.seeds=3", pictures=True)
    assert done.status == 0, done.err
    return done


@pytest.fixture(scope="module")
def vectors(ran: Ran) -> dict[str, np.ndarray]:
    """The first seed's word vectors, by word: those of a word test of all words, in the vocabulary's order."""
    texts = Biased(documents=72).read().texts
    train = np.load(ran.folder / "influence.npz")["train_index"]
    counts = Counter(word for place in train for word in tokens(texts[place]))
    order = sorted(counts, key=lambda word: (-counts[word], word))
    return dict(zip(order, load_file(ran.folder / "model.safetensors")["centre.weight"], strict=True))


def effect_size(vectors: dict[str, np.ndarray]) -> float:
    """WEAT of the test `work`, word by word."""

    def cosine(one: str, other: str) -> float:
        x, y = vectors[one], vectors[other]
        return float(x @ y / np.sqrt(x @ x * (y @ y)))

    def association(word: str) -> float:
        return float(np.mean([cosine(word, his) for his in HIS]) - np.mean([cosine(word, her) for her in HERS]))

    x, y = [association(word) for word in WORK], [association(word) for word in HOME]
    return float((np.mean(x) - np.mean(y)) / np.std([*x, *y], ddof=1))


# ------------------------------------------------------------------------------------------------------------- documents


def test_documents_that_have_the_bias_raise_the_effect_and_those_that_have_the_opposite_lower_it(ran: Ran) -> None:
    """By construction: class 1, every third document, is the other way round. On average; the effect (1.7 of 2) is near its bound."""
    made = np.load(ran.folder / "influence.npz")
    turned = made["train_index"] % 3 == 2
    assert (made["influence"][~turned].mean(0) < 0).all()
    assert (made["influence"][turned].mean(0) > 0).all()


def test_documents_are_listed_as_text_in_the_order_of_their_influence(ran: Ran) -> None:
    made = np.load(ran.folder / "influence.npz")
    order = np.argsort(made["influence"][:, 0], kind="stable")
    table = pd.read_csv(ran.folder / "documents.csv")
    raising = table[(table["test"] == "work") & (table["direction"] == "raises")]
    assert raising["train_index"].tolist() == made["train_index"][order[:10]].tolist()
    assert (raising["influence"] < 0).all()
    said = (ran.folder / "documents.md").read_text()
    assert f"## work: effect size {seeds(ran.folder)[0, 'trained', 'weat:work']:.3f}" in said
    assert f"document {raising['train_index'].iloc[0]}) {raising['text'].iloc[0][:40]}" in said


def test_documents_without_influence_fill_no_rank() -> None:
    data = replace(Biased(train_size=4, test_size=2).load(), test_names=("one", "two"))
    table = documents_table(data, np.array([[0.0, -1.0], [-2.0, -3.0], [0.5, -2.0], [0.0, 0.0]]), top=3)
    found = {(row.test, row.direction, row.rank): row.influence for row in table.itertuples()}
    assert found == {
        ("one", "raises", 1): -2.0, ("one", "lowers", 1): 0.5,
        ("two", "raises", 1): -3.0, ("two", "raises", 2): -2.0, ("two", "raises", 3): -1.0,
    }  # fmt: skip


def test_a_document_brings_no_markdown_of_its_own() -> None:
    table = pd.DataFrame([{"test": "one", "direction": "raises", "rank": 1, "train_index": 7, "influence": -0.5, "text": "# *a*\n[b](c)"}])
    assert "1. (-0.5, document 7) \\# \\*a\\* \\[b\\](c)" in documents_text(table, {"one": 1.0}).splitlines()


# ----------------------------------------------------------------------------------------------------------- the numbers


def test_the_effect_as_trained_is_that_of_the_vectors_word_by_word(ran: Ran, vectors: dict[str, np.ndarray]) -> None:
    assert seeds(ran.folder)[0, "trained", "weat:work"] == pytest.approx(effect_size(vectors), rel=1e-9)  # float64, sums in another order


def test_hard_debiasing_is_measured_on_debiased_vectors(ran: Ran, vectors: dict[str, np.ndarray]) -> None:
    """Its directions and its projection once more in NumPy; no pair of the default's equalised ones is in this vocabulary but (mother,
    father), and both keep one distance."""
    unit = {word: v / np.linalg.norm(v) for word, v in vectors.items()}
    centred = []
    for pair in (("she", "he"), ("her", "him"), ("woman", "man")):
        both = np.stack([unit[word] for word in pair])
        centred.append((both - both.mean(0)) / np.sqrt(2))
    direction = np.linalg.svd(np.concatenate(centred))[2][0]
    inside = {word: (v @ direction) * direction for word, v in unit.items()}
    made = {word: v if word in HIS + HERS else v - inside[word] for word, v in unit.items()}
    mean = (unit["mother"] + unit["father"]) / 2
    outside = mean - (mean @ direction) * direction
    for word in ("mother", "father"):
        apart = inside[word] - (inside["mother"] + inside["father"]) / 2
        made[word] = outside + np.sqrt(1 - outside @ outside) * apart / np.linalg.norm(apart)
    assert seeds(ran.folder)[0, "hard debiasing", "weat:work"] == pytest.approx(effect_size(made), rel=1e-8)


def test_changes_from_scratch_are_from_the_trained_model(ran: Ran) -> None:
    """Retrained with everything it is the same model, to the rounding of a stack."""
    each = seeds(ran.folder)
    for seed in range(3):
        base = each[seed, "trained", "weat:work"]
        for score in ("without raising", "without lowering", "without random"):
            found = each[seed, score, "weat:work"] - each[seed, score, "change:work"]
            assert found == pytest.approx(base, rel=1e-6)


def test_without_documents_that_raise_the_effect_it_falls_and_the_other_way_round(ran: Ran) -> None:
    """The corpus is small and its bias strong: every seed says so."""
    each = seeds(ran.folder)
    for seed in range(3):
        assert each[seed, "without raising", "minus_random:work"] < 0 < each[seed, "without lowering", "minus_random:work"]
        assert each[seed, "without raising", "predicted:work"] < 0 < each[seed, "without lowering", "predicted:work"]


def test_differences_and_means_are_made_of_what_the_table_has(ran: Ran) -> None:
    each = seeds(ran.folder)
    for seed in range(3):
        one = each[seed]
        assert one["without raising", "minus_random:work"] == pytest.approx(
            one["without raising", "change:work"] - one["without random", "change:work"], rel=1e-9
        )
        assert one["grad_dot", "raising_minus_random"] == pytest.approx(one["without raising", "minus_random:work"])
        assert one["grad_dot", "size_minus_hard"] == pytest.approx(
            abs(one["fine-tuned", "weat:work"]) - abs(one["hard debiasing", "weat:work"])
        )
        assert one["grad_dot", "loss_ratio"] == pytest.approx(one["fine-tuned", "loss:work"] / one["trained", "loss:work"])


def test_the_table_is_the_mean_over_seeds_with_its_interval(ran: Ran) -> None:
    table = pd.read_csv(ran.folder / "debiasing.csv").set_index(["score", "statistic"])
    values = seeds(ran.folder).xs("change:work", level="statistic").xs("fine-tuned", level="score")
    row = table.loc[("fine-tuned", "change:work")]
    half = 4.302653 * values.std(ddof=1) / np.sqrt(3)  # Student's t, 2 degrees of freedom, from a table
    assert (row.value, row.n_seeds) == (pytest.approx(values.mean()), 3)
    assert row.ci_high - row.value == pytest.approx(half, rel=1e-5)
    assert not table["value"].isna().any()


# ---------------------------------------------------------------------------------------------------------- the settings


def test_settings_are_chosen_on_the_test_that_is_held_out(ran: Ran) -> None:
    tried = pd.read_csv(ran.folder / "settings.csv")
    assert set(tried["test"]) == {"kept_back"}
    for seed, part in tried.groupby("seed"):
        assert len(part) == 3 * 2 * 2
        chosen = part[part["chosen"]].iloc[0]
        before = seeds(ran.folder)[seed, "trained", "loss:work"]
        allowed = part[part["loss"] <= 1.05 * before]
        if len(allowed):
            assert abs(chosen["weat"]) == allowed["weat"].abs().min()
        else:
            assert chosen["loss"] == part["loss"].min()


def test_settings_as_released_are_chosen_on_what_is_reported_and_the_run_says_so(ran: Ran, tmp_path: Path) -> None:
    """Then the steps that are reported are those of settings.csv: the same effect, to the rounding of a repeated path."""
    done = run(tmp_path, "task.seeds=1", "task.chosen_on=reported")
    assert done.status == 0, done.err
    assert "task.chosen_on=reported chooses the steps by the very effect that is reported" in done.out
    tried = pd.read_csv(done.folder / "settings.csv")
    assert set(tried["test"]) == {"work"}
    assert seeds(done.folder)[0, "fine-tuned", "weat:work"] == pytest.approx(tried[tried["chosen"]]["weat"].iloc[0], rel=1e-9)
    same = ["without raising", "without random", "hard debiasing"]
    ours, theirs = (seeds(folder)[0].loc[same] for folder in (done.folder, ran.folder))
    pd.testing.assert_series_equal(ours, theirs, rtol=1e-9)  # what does not use the settings


def test_documents_can_be_ranked_on_the_held_out_test(tmp_path: Path) -> None:
    done = run(tmp_path, "task.seeds=1", "task.ranked_on=held_out", "task.modes=[undo]", "task.steps=[2]", "task.documents=[3]")
    assert done.status == 0, done.err
    made = np.load(done.folder / "influence.npz")["influence"]
    lowest = np.argsort(made[:, 1], kind="stable")[:9]
    assert seeds(done.folder)[0, "without raising", "predicted:work"] == pytest.approx(made[lowest, 0].sum(), rel=1e-9)


# --------------------------------------------------------------------------------------------------------------- the run


def test_each_seed_is_a_run_of_its_own(ran: Ran, tmp_path: Path) -> None:
    alone = run(tmp_path, "task.seeds=1", "seed=1")
    assert alone.status == 0, alone.err
    pd.testing.assert_series_equal(seeds(alone.folder)[1], seeds(ran.folder)[1], rtol=1e-9)


def test_a_warm_start_is_compared_with_a_warm_start_that_leaves_nothing_out(tmp_path: Path) -> None:
    done = run(tmp_path, "task.seeds=1", "retraining.start=warm", "retraining.epochs=3")
    assert done.status == 0, done.err
    each = seeds(done.folder)[0]
    drifted = each["without random", "weat:work"] - each["without random", "change:work"]
    assert drifted != pytest.approx(each["trained", "weat:work"], rel=1e-6)  # three more epochs of everything
    assert each["without raising", "weat:work"] - each["without raising", "change:work"] == pytest.approx(drifted, rel=1e-9)


def test_settings_that_the_task_does_nothing_with_are_named(tmp_path: Path) -> None:
    few = ("task.modes=[undo]", "task.steps=[2]", "task.documents=[3]", "task.random_sets=2")
    done = run(tmp_path, "task.seeds=1", *few, "retraining.seeds=2", "retraining.start=scratch", "loo=true")
    assert done.status == 0, done.err
    assert "task=debiasing retrains in its own way (or not at all) and does not use retraining.seeds, loo." in done.out


def test_what_the_run_says_and_draws(ran: Ran) -> None:
    said = " ".join(ran.out.split())
    assert "60 documents, 9 left out (start=scratch), 4 random sets; settings of steps chosen on kept_back; 3 seeds" in said
    assert "without the documents that raise the effect by grad_dot it falls more than without random ones" in said
    assert (ran.folder / "debiasing.png").stat().st_size > 10_000
    record = json.loads((ran.folder / "run.json").read_text())
    assert (record["table"], record["headline"]["statistic"]) == ("debiasing.csv", "raising_minus_random")
    assert {"retrain", "fine-tune", "retrain, seed 2"} <= set(record["stage_seconds"])


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-1.0, -0.5, ("without random ones: yes (-0.750 [-1.00, -0.500])", "rises more: no, the opposite", "than hard debiasing: yes")),
        (0.5, 1.0, ("without random ones: no, the opposite", "rises more: yes (0.750", "than hard debiasing: no, the opposite")),
        (-0.5, 1.0, ("without random ones: not told (0.250", "rises more: not told", "than hard debiasing: not told")),
        (np.nan, np.nan, ("without random ones: one seed does not tell (0.250)", "rises more: one seed", "than hard debiasing: one seed")),
    ],
)
def test_the_verdict_is_what_the_intervals_say(low: float, high: float, said: tuple[str, ...]) -> None:
    value = 0.25 if np.isnan(low) else (low + high) / 2
    names = ("raising_minus_random", "lowering_minus_random", "size_minus_hard")
    table = pd.DataFrame([{"score": "cg", "statistic": name, "value": value, "ci_low": low, "ci_high": high} for name in names])
    assert all(part in debiasing_verdict(table, "cg") for part in said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("task.held_out=work_out",), "task.held_out=work_out is none of the tests work, kept_back."),
        (("~measurement.tests.kept_back", "task.held_out=work"), "there is no test to report beside task.held_out=work"),
        (("task.documents=[40]",), "task.documents=[40] wants 40 on either side of 60 documents: ask for fewer."),
        (("task.share=0.001",), "task.share=0.001 of 60 documents is none: raise it."),
        (("task.share=0.6",), "task.share=0.6 is not possible: it must be a number above 0 and of at most 0.5"),
        (("task.random_sets=1",), "task.random_sets=1 is not possible: it must be a whole number of at least 2"),
        (("task.modes=[undo,redo]",), "it must be a list of different ones of undo, amplify, both"),
        (("task.steps=[0]",), "it must be a list of different whole numbers of at least 1"),
        (("task.rates=[]",), "it must be a list of different numbers above 0"),
        (("task.rival.definitional=[[aunt,uncle]]",), "the vocabulary has 0 of the 1 definitional sets of task.rival whole"),
        (("task.rival.definitional=[aunt]",), "task.rival.definitional=['aunt'] is not possible: it must be a list of lists of words"),
        (("test_points=highest",), "test_points=highest"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_before_anything_is_trained(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = run(tmp_path, *words)
    assert done.status == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("model.safetensors"))


def test_scores_from_a_file_are_of_one_model(ran: Ran, tmp_path: Path) -> None:
    done = run(tmp_path, "method=external", f"path={ran.folder / 'influence.npz'}")
    assert (done.status, "task.seeds > 1 trains others: set task.seeds=1." in done.err) == (2, True)
    known = run(tmp_path, "method=external", f"path={ran.folder / 'influence.npz'}", "task.seeds=1")
    assert known.status == 0, known.err
    ours, theirs = (seeds(folder)[0].drop(method) for folder, method in ((known.folder, "external"), (ran.folder, "grad_dot")))
    pd.testing.assert_series_equal(ours, theirs, rtol=1e-9)  # the same documents in the same order


def test_other_data_are_told_what_the_task_needs(tmp_path: Path) -> None:
    words = ("task=debiasing", "objective=supervised", "model=mlp", "measurement=loss", "dataset=iris")
    done = call("validate", *words, cwd=tmp_path)
    assert done.status == 2
    assert "use objective=skip_gram model=skip_gram measurement=weat" in done.err
