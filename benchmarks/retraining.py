"""Leave-one-out retraining: K models side by side against a plain PyTorch loop, one model after another. Prints one table.

    python benchmarks/retraining.py

Same data, model, batch order and weight-zero removal in both; the largest difference of the resulting parameters is printed beside the
ratio, as a fast wrong answer is worth nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from measure import paired, peak_mebibytes
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from influx.datasets.digits import Digits
from influx.experiment import Experiment
from influx.measurements import Loss
from influx.models.mlp import Mlp
from influx.objectives import Supervised
from influx.retraining import Retraining
from influx.store import Store
from influx.training.first_order import Sgd

EPOCHS, MODELS = 5, 32
TRAINING = Sgd(epochs=EPOCHS, batch_size=64)


def loader_loop(experiment: Experiment, removed: int) -> dict[str, Tensor]:
    """What a user would write: DataLoader, nn.Module, optimizer.step(); the removed row has weight 0."""
    data = experiment.data
    module = experiment.module(0).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=TRAINING.lr, momentum=TRAINING.momentum, weight_decay=TRAINING.weight_decay)
    ones = torch.ones(1, data.n_train, dtype=data.train_inputs.dtype)
    order = TRAINING._batches(experiment.task(0, ones))
    weights = torch.ones(data.n_train, dtype=data.train_inputs.dtype)
    weights[removed] = 0
    rows = TensorDataset(data.train_inputs, data.train_targets, weights)
    for _ in range(EPOCHS):
        for x, y, w in DataLoader(rows, batch_sampler=[batch.tolist() for batch in next(order)]):
            loss = (torch.nn.functional.cross_entropy(module(x), y, reduction="none") * w).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: value.detach() for name, value in module.named_parameters()}


def main() -> None:
    torch.set_num_threads(1)
    print(f"MLP 64-32-10 on digits, {EPOCHS} epochs, batch 64, one thread, {MODELS} models side by side, medians of 3 pairs\n")
    print("| type | loop, ms a model | side by side, ms a model | ratio | largest difference |\n|---|---|---|---|---|")
    for dtype in (torch.float32, torch.float64):
        experiment = Experiment(Digits(standardize=False).load().to(dtype, "cpu"), Mlp(), TRAINING, Supervised(), Loss())
        base = experiment.train(0, Store(None))
        task = Retraining()._task(experiment, base, np.arange(MODELS - 1), 0)

        def ours() -> None:
            TRAINING.fit(task)  # noqa: B023 - run before the loop goes on

        slow, fast, ratio = paired(lambda: [loader_loop(experiment, k) for k in (0, 1)], ours)  # noqa: B023
        alone = loader_loop(experiment, 3)
        together = TRAINING.fit(task).params
        difference = max((together[name][4] - alone[name]).abs().max().item() for name in alone)
        scale = MODELS / 2
        print(f"| {str(dtype)[6:]} | {slow / 2 * 1e3:.0f} | {fast / MODELS * 1e3:.1f} | {ratio * scale:.0f}x | {difference:.1e} |")
    print(f"\npeak memory {peak_mebibytes():.0f} MiB")


if __name__ == "__main__":
    main()
