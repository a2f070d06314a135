"""Gradients of word-vector models for training: only the vectors of words that occur in a batch are read and added to."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from influx.problem import Examples
from influx.stacking import Stack
from influx.training.backprop import Backprop
from influx.word_products import WordProducts


class ByWord(Backprop):
    """One model after another, by hand (`influx.word_products`): autograd's numbers to rounding, in half its time.

    For objectives whose examples have losses of their own.
    """

    def gradients(
        self, params: Stack, buffers: Stack, batch: Examples, weights: Float[Tensor, "k batch"]
    ) -> tuple[Float[Tensor, "k batch out"], Stack]:
        outputs, found = [], {name: torch.zeros_like(params[name]) for name in self.trainable}
        for k in range(len(weights)):
            model = WordProducts({name: value[k].detach() for name, value in params.items()}, self.trainable, self.objective)
            into = {name: value[k] for name, value in found.items()}  # views: added to in place
            outputs.append(model.gradient(batch.inputs, batch.targets, weights[k], into))
        return torch.stack(outputs), found
