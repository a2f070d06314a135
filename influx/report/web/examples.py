"""Examples on a page: each is held once, as few bytes, and referred to by its number."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

LARGEST = 64  # pixels: an image's longer side on the page
BUDGET = 1_500_000  # characters of all examples on a page


@dataclass(frozen=True)
class Shown:
    """An example: its title and an image in [0, 1], a text, or features with their values; with none of them the title says all."""

    title: str
    image: Float[np.ndarray, "channels height width"] | None = None
    text: str = ""
    features: tuple[tuple[str, str], ...] = ()


def packed(examples: Sequence[Shown], budget: int = BUDGET) -> tuple[dict[str, Any], int]:
    """What the page's script reads: `names` (tuples of features' names, each once) and `items`, and how many examples stand with
    their title alone because the budget of characters was spent."""
    names: dict[tuple[str, ...], int] = {}
    items: list[dict[str, Any]] = []
    spent = left_out = 0
    for example in examples:
        item = _item(example, names)
        size = sum(len(str(value)) for value in item.values())
        if spent + size > budget:
            item, left_out = {"title": example.title}, left_out + 1
        spent += size
        items.append(item)
    return {"names": [list(one) for one in names], "items": items}, left_out


def _item(example: Shown, names: dict[tuple[str, ...], int]) -> dict[str, Any]:
    if example.image is not None:
        return {"title": example.title, "image": data_uri(example.image)}
    if example.features:
        own = tuple(name for name, _ in example.features)
        return {"title": example.title, "names": names.setdefault(own, len(names)), "values": [value for _, value in example.features]}
    return {"title": example.title, "text": example.text} if example.text else {"title": example.title}


def data_uri(image: Float[np.ndarray, "channels height width"]) -> str:
    """A PNG in a `data:` address, no side longer than `LARGEST` pixels; grey for one channel, colours for three."""
    pixels = np.round(255 * np.clip(np.nan_to_num(image), 0, 1)).astype(np.uint8)
    made = Image.fromarray(np.moveaxis(pixels, 0, -1) if len(pixels) == 3 else pixels[0])
    made.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    made.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
