"""Texts as whole documents, paragraphs or sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence

PARAGRAPH = re.compile(r"\n\s*\n")
# After . ! or ?, with what closes behind it, and before a capital, a digit or what opens a quotation; not after one capital (J. F. Kennedy,
# the U.S. Senate) or a title.
SENTENCE = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)\]]))(?<!\b[A-Z]\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bMrs\.)\s+(?=[\"'“‘(\[]?[A-Z0-9£$])"
)


def pieces(texts: Sequence[str], unit: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The documents, or their paragraphs (between empty lines), or the sentences of those, in their order; and which document each is of.
    A document that is empty is one empty piece."""
    parts = [_split(text, unit) for text in texts]
    return tuple(piece for part in parts for piece in part), tuple(at for at, part in enumerate(parts) for _ in part)


def _split(text: str, unit: str) -> list[str]:
    if unit == "document":
        return [text]
    paragraphs = PARAGRAPH.split(text.strip())
    if unit == "paragraph":
        return paragraphs
    return [sentence.strip() for paragraph in paragraphs for sentence in SENTENCE.split(paragraph)]
