"""What the README shows a newcomer works as it stands: the estimator of one's own, and the names in its tables."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from influx.estimators import Estimator
from influx.instantiate import build

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", README, re.S) if containing in text)


def test_the_estimator_of_ones_own_stands_in_the_sweeps_table(tmp_path, run_influx, monkeypatch):
    """As a reader would: two files copied out of the README, then its command (on few rows, and one built-in method beside it)."""
    code, yaml = block("python", "Diagonal"), block("yaml", "Diagonal")
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "diagonal.py").write_text(code)
    (tmp_path / "myconf" / "method").mkdir(parents=True)
    (tmp_path / "myconf" / "method" / "diagonal.yaml").write_text(yaml)
    monkeypatch.syspath_prepend(str(tmp_path))
    few = ("dataset=iris", "dataset.train_size=40", "dataset.test_size=6", "training.epochs=3", "resamples=50", "retraining.removed=5")
    ran = run_influx("validate", "-m", "--config-dir", "myconf", "method=diagonal,exact", *few, cwd=tmp_path)
    monkeypatch.delitem(sys.modules, "mylab.diagonal")
    assert ran.status in (0, None), ran.err
    (summary,) = tmp_path.glob("outputs/validate/sweeps/*/summary.csv")
    assert set(pd.read_csv(summary).method) == {"diagonal", "exact"}
    assert len(code.splitlines()) <= 24


def options(group: str) -> set[str]:
    return {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")}


@pytest.mark.parametrize("group", ["method", "model", "training", "dataset", "measurement"])
def test_every_option_is_in_a_table(group):
    named = set(re.findall(r"`([a-z_0-9]+)`", README))
    assert options(group) <= named | {"default"}


def composed(method: str) -> Estimator:
    """The method as the command line builds it, its solver from its own group."""
    node = yaml.safe_load((ROOT / "conf" / "method" / f"{method}.yaml").read_text())
    for part in node.pop("defaults", []):
        if isinstance(part, dict):
            node["solver"] = yaml.safe_load((ROOT / "conf" / "solver" / f"{part['/solver@solver']}.yaml").read_text())
    return build(node, Estimator, "method")


def test_methods_say_whether_they_are_calibrated():
    """The README's last column against the classes."""
    table = README[README.index("| `method=` |") : README.index("| group | options |")]
    said: dict[str, str] = {}
    for line in table.splitlines():
        for name in re.findall(r"`([a-z_]+)`", line.split("|")[1]) if line.startswith("| `") else []:
            said[name] = line.rsplit("|", 2)[1].strip()
    for name, word in said.items():
        if word in ("yes", "no"):
            assert composed(name).calibrated is (word == "yes"), name
