"""`weat.csv` of a run, against the stored model's vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import call
from corpora import HERS, HIS, HOME, WORK, Biased, write_options
from safetensors.numpy import load_file

from influx.measurements.weat import permutation_p
from influx.objectives.skip_gram import SkipGram


def test_a_run_writes_its_word_tests(tmp_path: Path) -> None:
    words = [*write_options(tmp_path), "method=grad_dot", "dtype=float64", "training.epochs=2"]
    lists = "measurement.tests.work.X=[" + ",".join([*WORK, "yacht"]) + "]"
    folder = call("estimate", *words, lists, cwd=tmp_path).folder
    table = pd.read_csv(folder / "weat.csv").set_index("test")
    assert list(table.index) == ["work", "kept_back"]
    names = SkipGram(max_pairs=120).prepare(Biased(train_size=60, test_size=12).load()).words
    vectors = load_file(folder / "model.safetensors")["centre.weight"]
    unit = dict(zip(names, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), strict=True))
    x, y = (
        np.array([np.mean([unit[w] @ unit[a] for a in HIS]) - np.mean([unit[w] @ unit[b] for b in HERS]) for w in part])
        for part in (WORK, HOME)
    )
    row = table.loc["work"]
    assert row["effect_size"] == pytest.approx((x.mean() - y.mean()) / np.concatenate([x, y]).std(ddof=1), rel=1e-9)
    assert (row["p"], row["partitions"], row["exact"]) == (pytest.approx(permutation_p(x, y)[0]), 20, True)
    assert row["missing"] == "X: yacht"
    assert row["used"].startswith(f"X: {', '.join(WORK)}; Y: {', '.join(HOME)}; A: ")
    facts = json.loads((folder / "run.json").read_text())["facts"]
    assert facts["weat:work"] == row["effect_size"]
    assert facts["p:kept_back"] == table.loc["kept_back", "p"]
