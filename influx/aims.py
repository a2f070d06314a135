"""What outputs are compared with: the targets of the training objective and of the measurement, for the examples of an experiment.

Labels are read from the data; reconstructions' targets are made of the inputs; those of coupled objectives, and the outputs that training
started from, are made by running a model: the one that training starts from, or, for targets that are recomputed, the trained one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from influx import stacking
from influx.masking import seen
from influx.measurements import Measurement
from influx.objectives.base import Coupled, Objective, SelfTargeted

State = tuple[dict[str, Tensor], dict[str, Tensor]]  # parameters, buffers
Labelled = tuple[Shaped[Tensor, " n *shape"], Shaped[Tensor, " n"]]  # inputs, the data set's own answers


@dataclass(frozen=True)
class Aims:
    """How to read targets: `start` is the state that training starts from, `now` the trained one (before training, the same), `train` the
    training part."""

    module: nn.Module
    start: State
    now: State
    objective: Objective
    train: Labelled

    def of_objective(self, part: Labelled) -> Shaped[Tensor, " n *target"]:
        """y of the training objective's ℓ."""
        inputs, labels = part
        if isinstance(self.objective, SelfTargeted):
            return self.objective.targets(seen(self.module, inputs))
        if not isinstance(self.objective, Coupled):
            return labels
        state = self.now if self.objective.recompute else self.start
        outputs = self._outputs(inputs, state)
        everyone = outputs if self.objective.recompute else self._outputs(self.train[0], state)  # recomputed: a part is its own batch
        return self.objective.aims(outputs, self.objective.reference(outputs=everyone, weights=torch.ones_like(everyone[:, 0])))

    def of_measurement(self, measurement: Measurement, part: Labelled) -> Shaped[Tensor, " n *target"]:
        """What m_t compares outputs with."""
        if measurement.reads == "targets":
            return self.of_objective(part)
        return part[1] if measurement.reads == "labels" else self._outputs(part[0], self.start)

    def _outputs(self, inputs: Shaped[Tensor, " n *shape"], state: State) -> Float[Tensor, "n out"]:
        params, buffers = (stacking.stack(named, 1) for named in state)
        each = stacking.bytes_per_row(self.module, *state, inputs)
        with torch.no_grad():
            made = [stacking.outputs(self.module, params, buffers, inputs[rows])[0] for rows in stacking.blocks(len(inputs), 4 * each)]
        return torch.cat(made)
