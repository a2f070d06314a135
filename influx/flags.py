"""Hydra's flags, wherever on the line they stand: it takes them only in front of the settings, or all behind them."""

from __future__ import annotations

from collections.abc import Sequence

WITH_A_WORD = (
    "-cp",
    "--config-path",
    "-cn",
    "--config-name",
    "-cd",
    "--config-dir",
    "-p",
    "--package",
    "-c",
    "--cfg",
    "--experimental-rerun",
)
ABOUT = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # what --info may be about; it needs no word


def flags_first(words: Sequence[str]) -> list[str]:
    """The same words, each flag with the word that belongs to it in front."""
    flags: list[str] = []
    others: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        (flags if word.startswith("-") else others).append(word)
        if waiting and (word in WITH_A_WORD or (word in ("-i", "--info") and waiting[0] in ABOUT)):
            flags.append(waiting.pop(0))
    return flags + others
