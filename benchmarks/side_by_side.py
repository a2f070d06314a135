"""Models trained side by side: against loops over models, and against the machine's matrix products."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from loops import SEED, Parameters, warm_up, with_loader, with_slices
from measure import header, in_turn, ratio, row, seconds
from torch import Tensor, nn

from influx.datasets import Dataset
from influx.datasets.digits import Digits
from influx.datasets.mnist5k import Mnist5k
from influx.experiment import Experiment, Trained
from influx.measurements import Loss
from influx.models import Model
from influx.models.lenet import LeNet
from influx.models.logistic import Logistic
from influx.models.mlp import Mlp
from influx.objectives import Supervised
from influx.removals import Removals
from influx.retraining import Plan, Retraining
from influx.shards import Draw, Shard
from influx.store import Store
from influx.training.backprop import product
from influx.training.first_order import Sgd

DTYPES = (torch.float32, torch.float64)
NOWHERE = Store(None)


@dataclass(frozen=True)
class Case:
    """A model on its data, trained for so many epochs by SGD with momentum in batches of 64."""

    name: str
    dataset: Dataset
    model: Model
    epochs: int

    def experiment(self, dtype: torch.dtype) -> Experiment:
        data = self.dataset.load().to(dtype, "cpu")
        return Experiment(data, self.model, Sgd(epochs=self.epochs), Supervised(), Loss())


def sgd_cases(quick: bool) -> list[Case]:
    small, middle, large = (3, 2, 1) if quick else (30, 10, 3)
    mnist = Mnist5k(train_size=1000)
    return [
        Case("softmax regression", Digits(), Logistic(), small),
        Case("MLP 64-32-10", Digits(), Mlp(), small),
        Case("MLP 784-128-10", mnist, Mlp(width=128), middle),
        Case("LeNet-5", mnist, LeNet(), large),
    ]


def sgd(quick: bool) -> None:
    """Leave-one-out by SGD: one stack, of the size that influx chooses, against both loops."""
    torch.set_num_threads(1)
    models, rounds = (1, 1) if quick else (3, 3)
    print(f"One thread; medians of {rounds} round(s), {models} model(s) by each loop in each.\n")
    header("model", "rows x epochs", "type", "loader, ms", "tensors, ms", "influx, ms", "K", "x loader", "x tensors", "difference")
    for case in sgd_cases(quick):
        ways = [_sgd_row(case, dtype, models, rounds) for dtype in DTYPES]
        if isinstance(case.model, LeNet):
            chosen = " and ".join(f"{way} ({str(dtype)[6:]})" for way, dtype in zip(ways, DTYPES, strict=True))
    print(f"\nLeNet-5 by the plan's trial: {chosen}. Milliseconds are of one model.")


def _sgd_row(case: Case, dtype: torch.dtype, models: int, rounds: int) -> str:
    """Measure, print, and say how the stack was trained."""
    experiment = case.experiment(dtype)
    shard, plan = first_shard(experiment, experiment.train(SEED, NOWHERE))
    warm_up(experiment)
    made: dict[str, Parameters] = {}

    def ours() -> None:
        made["ours"] = shard.training.fit(shard.task()).params

    def loops(loop: Callable[[Experiment, int], Parameters]) -> None:
        made["loop"] = [loop(experiment, left_out) for left_out in range(models)][-1]

    runs = in_turn({"loader": lambda: loops(with_loader), "tensor": lambda: loops(with_slices), "ours": ours}, rounds)
    each = {"loader": models, "tensor": models, "ours": len(shard.part) + 1}
    runs = {name: [1e3 * s / each[name] for s in values] for name, values in runs.items()}
    n, times = experiment.data.n_train, {name: statistics.median(values) for name, values in runs.items()}
    difference = max((made["ours"][name][models] - value).abs().max().item() for name, value in made["loop"].items())
    figures = f"{times['loader']:.0f}", f"{times['tensor']:.0f}", f"{times['ours']:.3g}", each["ours"]
    ratios = (f"**{ratio(runs[loop], runs['ours']):.3g}**" for loop in ("loader", "tensor"))
    row(case.name, f"{n:,} x {case.epochs}", str(dtype)[6:], *figures, *ratios, f"{difference:.0e}")
    return "side by side" if plan.side_by_side else "one by one"


def first_shard(experiment: Experiment, base: Trained) -> tuple[Shard, Plan]:
    """The first stack of leave-one-out over all examples, in the way that a trial chooses: model k lacks row k − 1."""
    retraining, sets = Retraining(seeds=1), Removals.single(range(experiment.data.n_train))
    plan = retraining.plan(experiment, base, sets, SEED, NOWHERE)
    return retraining.shards(experiment, [base], sets, SEED, plan)[0], plan


def stack(quick: bool) -> None:
    """What K models side by side cost each, and how near their products come to the machine's rate."""
    torch.set_num_threads(1)
    case = sgd_cases(quick)[1]
    rounds = 1 if quick else 3
    experiment = case.experiment(torch.float32)
    base = experiment.train(SEED, NOWHERE)
    work = flops(experiment.module(SEED)) * experiment.data.n_train * case.epochs
    print(f"{case.name}, {experiment.data.n_train:,} rows x {case.epochs} epochs, float32, one thread; {work / 1e9:.2f} GFLOP a model.\n")
    header("models side by side", "ms a model", "GFLOP/s")
    for models in (4**power for power in range(4 if quick else 6)):
        shard = Shard(Retraining().recipe, experiment, Removals.single(range(models - 1)), Draw(SEED, SEED), base, side_by_side=True)
        each = statistics.median(seconds(lambda shard=shard: shard.training.fit(shard.task())) for _ in range(rounds)) / models
        row(f"{models:,}", f"{1e3 * each:.3g}", f"{work / each / 1e9:.3g}")
    print()
    _rates(64, 0.1 if quick else 0.5)


def flops(module: nn.Module) -> int:
    """Of the matrix products of one row's step: forward, weights' gradients, and inputs' gradients of all layers but the first."""
    sizes = [part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear)]
    return 2 * (3 * sum(sizes) - sizes[0])


def _rates(models: int, budget: float) -> None:
    """GFLOP/s of torch.mm, of influx's `product` (oneDNN in float32) and of torch.bmm on the step's own shapes, and on a large one."""
    header("matrix product", "type", "torch, GFLOP/s", "influx, GFLOP/s")
    for dtype in DTYPES:
        name = str(dtype)[6:]
        for m, k, n in ((32 * models, 64, 64), (2048, 2048, 2048)):
            left, right = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
            plain, ours = (_rate(work, left, right, budget) for work in (torch.mm, product))
            row(f"[{m:,}, {k:,}] x [{k:,}, {n:,}]", name, f"{plain:.0f}", f"{ours:.0f}")
        for m, k, n in ((10, 32, 64), (10, 64, 32), (32, 10, 64)):
            left, right = torch.randn(models, m, k, dtype=dtype), torch.randn(models, k, n, dtype=dtype)
            rate = _rate(torch.bmm, left, right, budget)
            row(f"{models} of [{m}, {k}] x [{k}, {n}]", name, f"{rate:.0f}", f"{rate:.0f}")


def _rate(work: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor, budget: float) -> float:
    once = seconds(lambda: [work(left, right) for _ in range(3)]) / 3
    times = max(3, int(budget / once / 3))
    best = min(seconds(lambda: [work(left, right) for _ in range(times)]) / times for _ in range(3))
    return 2 * left.numel() * right.shape[-1] / best / 1e9
