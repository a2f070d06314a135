"""A made-up corpus whose bias is known, document by document, and the word tests that measure it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from influx.datasets.base import Dataset, Source

HIS, HERS = ("he", "him", "man", "father"), ("she", "her", "woman", "mother")
WORK, HOME = ("office", "salary", "career"), ("home", "children", "wedding")
WORK_TOO, HOME_TOO = ("boss", "firm", "profit"), ("baby", "kitchen", "garden")
FILLERS = ("the", "a", "of", "and", "to")


@dataclass(frozen=True, kw_only=True)
class Biased(Dataset):
    """Documents of him and of her in turn; two of three have his words beside work and hers beside home, every third is the other way round
    (class 1)."""

    documents: int = 72
    standardize: bool = False

    def read(self) -> Source:
        rng = np.random.default_rng(11)
        labels = np.array([int(place % 3 == 2) for place in range(self.documents)])
        texts = tuple(document(rng, his=place % 2 == 0, work=(place % 2 == 0) != bool(label)) for place, label in enumerate(labels))
        return Source(np.zeros((self.documents, 1)), labels, "classification", ("usual", "turned"), texts=texts)


def document(rng: np.random.Generator, *, his: bool, work: bool) -> str:
    """Forty words in any order, of him or of her, of work or of home, and fillers."""
    who, where = HIS if his else HERS, WORK + WORK_TOO if work else HOME + HOME_TOO
    said = [*rng.choice(who, 16), *rng.choice(where, 16), *rng.choice(FILLERS, 8)]
    return " ".join(str(word) for word in rng.permutation(said))


DATASET = """# Made-up documents
_target_: corpora.Biased
train_size: 60
test_size: 12
"""
MEASUREMENT = f"""# Made-up word tests
_target_: influx.measurements.weat.Weat
ddof: 1
tests:
  work: {{X: [{", ".join(WORK)}], Y: [{", ".join(HOME)}], A: [{", ".join(HIS)}], B: [{", ".join(HERS)}]}}
  kept_back: {{X: [{", ".join(WORK_TOO)}], Y: [{", ".join(HOME_TOO)}], A: [{", ".join(HIS)}], B: [{", ".join(HERS)}]}}
"""


def write_options(place: Path) -> list[str]:
    """The words that choose this corpus, its tests and a small model; the options are files in `place`/conf."""
    for group, name, content in (("dataset", "biased", DATASET), ("measurement", "biases", MEASUREMENT)):
        folder = place / "conf" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(content)
    return [
        "--config-dir", str(place / "conf"), "dataset=biased", "objective=skip_gram", "model=skip_gram", "measurement=biases",
        "objective.window=4", "objective.max_pairs=120", "model.width=6", "training=adam", "training.lr=0.03", "training.epochs=20",
        "training.batch_size=15", "training.weight_decay=0",
    ]  # fmt: skip
