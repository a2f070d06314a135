"""Influence class by class, and the accuracy that every classification run notes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from conftest import Ran, Run
from matplotlib.figure import Figure
from problems import data
from safetensors.torch import load_file

from influx.datasets.digits import Digits
from influx.pipelines.class_influence import class_table
from influx.report.heat_map import draw_class_influence


def test_each_cell_is_the_mean_over_its_pairs() -> None:
    tiny = data("softmax")
    influence = np.random.default_rng(0).normal(size=(tiny.n_train, tiny.n_test))
    table = class_table(tiny, influence)
    train, test = tiny.train_targets.numpy(), tiny.test_targets.numpy()
    for row in table.itertuples():
        mine, theirs = np.flatnonzero(train == int(row.train_class)), np.flatnonzero(test == int(row.test_class))
        pairs = [influence[i, t] for i in mine for t in theirs]
        assert abs(row.influence - np.mean(pairs)) < 1e-14  # two orders of summation
        assert row.n_train * row.n_test == len(pairs)
    assert (table["n_train"] * table["n_test"]).sum() == influence.size  # every pair is in one cell


def test_a_class_without_examples_has_no_cell_and_draws_none() -> None:
    tiny = data("softmax")
    one = replace(tiny, test_targets=torch.zeros_like(tiny.test_targets))
    influence = np.random.default_rng(0).normal(size=(tiny.n_train, tiny.n_test))
    table = class_table(one, influence)
    assert table["test_class"].unique().tolist() == ["0"]
    ax = Figure().subplots()
    draw_class_influence(table.drop(0), ax, unit="loss")  # the first cell is missing
    assert ax.images[0].get_array().shape == (2, 1)


def test_the_map_is_white_at_zero_and_holds_the_tables_numbers() -> None:
    table = pd.DataFrame({"train_class": list("aabb"), "test_class": list("abab"), "influence": [3.0, -1.0, 0.0, 0.5]})
    ax = Figure().subplots()
    draw_class_influence(table, ax, unit="loss")
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), [[3.0, -1.0], [0.0, 0.5]])
    assert image.get_clim() == (-3.0, 3.0)
    assert [text.get_text() for text in ax.texts] == ["3.00", "-1.00", "0.00", "0.500"]


def test_a_run_writes_it_for_single_test_examples_only(estimated: Ran, tiny: Run) -> None:
    table = pd.read_csv(estimated.folder / "class_influence.csv")
    influence = np.load(estimated.folder / "influence.npz")["influence"]
    weighted = (table["influence"] * table["n_train"] * table["n_test"]).sum() / influence.size
    np.testing.assert_allclose(weighted, influence.mean(), rtol=1e-9)
    assert (estimated.folder / "class_influence.png").read_bytes().startswith(b"\x89PNG")
    assert not (tiny("estimate", "measurement=mean_loss").folder / "class_influence.csv").exists()


def test_accuracy_is_the_share_of_test_examples_whose_class_is_right(estimated: Ran) -> None:
    """The network written out by hand: tanh of one layer, then another, on the digits as scikit-learn has them."""
    params = load_file(estimated.folder / "model.safetensors")
    inputs = Digits(train_size=60, test_size=8, standardize=False).load()
    first, second = (name.removesuffix("weight") for name in sorted(params) if name.endswith("weight"))
    hidden = torch.tanh(inputs.test_inputs.flatten(1) @ params[f"{first}weight"].T + params[f"{first}bias"])
    outputs = hidden @ params[f"{second}weight"].T + params[f"{second}bias"]
    right = (outputs.argmax(1) == inputs.test_targets).double().mean().item()
    assert json.loads((estimated.folder / "run.json").read_text())["facts"]["test_accuracy"] == right


def test_numbers_to_predict_have_no_accuracy(tiny: Run) -> None:
    ran = tiny("estimate", "dataset=diabetes", "model=linear")
    assert "test_accuracy" not in json.loads((ran.folder / "run.json").read_text()).get("facts", {})
    assert not (ran.folder / "class_influence.csv").exists()
