"""The parts of a BERT-like encoder (Devlin et al. 2019, section 3; the layers are those of Vaswani et al. 2017, section 3.1).

What passes from part to part is one tensor [texts, tokens, width + 1]: a vector a token, and in the last column its *presence*, 1 for a
token and 0 for padding. A token is attended to, and counts in a mean, in proportion to its presence, so that padding changes nothing;
numbers between 0 and 1 (a mean over texts) are what they seem.

Attention and normalisation are written out, so that a part runs on any number of leading dimensions, in float32 and float64, and under
`torch.func`. Activations are modules of their own where layers train: that is what turn-over dropout looks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-12  # of layer normalisation, as BERT has it
POSITIONS = 512  # tokens of the longest text


class Embeddings(nn.Module):
    """Token ids [texts, tokens], whole numbers in any type, 0 for padding, as vectors: word + position + segment, normalised."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(POSITIONS, width)
        self.segment = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, EPSILON)

    def forward(self, ids: Float[Tensor, "texts tokens"]) -> Float[Tensor, "texts tokens width1"]:
        whole = ids.long()
        places = torch.arange(ids.shape[-1], device=ids.device)
        hidden = self.norm(self.word(whole) + self.position(places) + self.segment(torch.zeros_like(places)))
        return torch.cat([hidden, (whole != 0).to(hidden).unsqueeze(-1)], dim=-1)


class Layer(nn.Module):
    """Self-attention, then two linear layers of 4 x width hidden units, each with a sum around it and a normalisation behind it.

    1. No dropout (BERT trains with rate 0.1): the training can then be followed step by step, and masks are turn-over dropout's alone.
    """

    def __init__(self, width: int, heads: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width) for _ in range(4))
        self.mix_norm = nn.LayerNorm(width, EPSILON)
        self.widen = nn.Linear(width, 4 * width)
        self.activation = activation
        self.narrow = nn.Linear(4 * width, width)
        self.narrow_norm = nn.LayerNorm(width, EPSILON)

    def forward(self, given: Float[Tensor, "texts tokens width1"]) -> Float[Tensor, "texts tokens width1"]:
        hidden, presence = given[..., :-1], given[..., -1]
        hidden = self.mix_norm(hidden + self.mix(self._attended(hidden, presence)))
        hidden = self.narrow_norm(hidden + self.narrow(self.activation(self.widen(hidden))))
        return torch.cat([hidden, presence.unsqueeze(-1)], dim=-1)

    def _attended(self, hidden: Float[Tensor, "texts tokens width"], presence: Float[Tensor, "texts tokens"]) -> Tensor:
        """softmax(qᵀk/√d + log presence) v of each head, side by side."""
        query, key, value = (part(hidden).unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in (self.query, self.key, self.value))
        scores = query @ key.mT / math.sqrt(query.shape[-1])  # [texts, heads, tokens, tokens]
        allowed = presence.clamp_min(torch.finfo(presence.dtype).tiny).log()  # finite, for a text without a token
        weights = torch.softmax(scores + allowed.unsqueeze(-2).unsqueeze(-2), dim=-1)
        return (weights @ value).transpose(-2, -3).flatten(-2)


class Pool(nn.Module):
    """One vector a text: the mean over its tokens, or its first token's ([CLS])."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, given: Float[Tensor, "texts tokens width1"]) -> Float[Tensor, "texts width"]:
        hidden, presence = given[..., :-1], given[..., -1:]
        if self.kind == "first":
            return hidden[..., 0, :]
        return (hidden * presence).sum(-2) / presence.sum(-2).clamp_min(torch.finfo(presence.dtype).tiny)


def layers(first: int, stop: int, width: int, heads: int, *, trained: bool) -> dict[str, nn.Module]:
    """Layers by name, counted from 1. Frozen ones have no activation module: they carry no masks."""
    return {f"layer{at + 1}": Layer(width, heads, nn.GELU() if trained else F.gelu) for at in range(first, stop)}


def frozen(module: nn.Module) -> nn.Module:
    """The module with its parameters turned into buffers: they neither train nor count among the parameters."""
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, value.detach())
    return module
