"""Hypergradients of LeNet-5: all training examples backwards (adjoint) against a few of them forwards, in one run. Prints a Markdown table.

    python benchmarks/hypergradient.py [--root FOLDER] [--dtype float32] [--tracked 4] [--threads 1] [--quick]

`--root` is the folder of Fashion-MNIST's files; without them it is the 5,000 digits of mnist5k. 1,500 training images, 20 epochs in
batches of 64, one measurement: the mean loss over the test images. With Hessians the forward form follows a few examples only, each having
a product of its own at every step; without them all, which takes 2 x 1,500 x 61,706 numbers. Memory is the process's peak during a way
above what it held before it (Linux; elsewhere its highest so far).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from measure import header, processor, row, seconds
from torch import Tensor

from influx.datasets import Data
from influx.datasets.fashion_mnist import FashionMnist
from influx.datasets.mnist5k import Mnist5k
from influx.estimators.adjoint import hessian_free, reverse
from influx.estimators.recursion import forward, read_out
from influx.experiment import Experiment
from influx.laboratory import Laboratory
from influx.measurements import MeanLoss
from influx.memory import Peak
from influx.models.lenet import LeNet
from influx.objectives import Supervised
from influx.problem import Problem
from influx.store import Store
from influx.training.first_order import Sgd
from influx.trajectory import Trajectory

N_TRAIN, N_TEST, EPOCHS, BATCH, SEED, MEMORY = 1500, 500, 20, 64, 0, 2**31
Scores = Float[Tensor, "k one"]


@dataclass(frozen=True)
class Subject:
    """A trained LeNet with its run, and the training rows that the forward form follows."""

    problem: Problem
    trajectory: Trajectory
    tracked: Tensor

    def forwards(self, tracked: Tensor | None) -> Scores:
        """With Hessians of `tracked` rows, without Hessians (None) of all."""
        return read_out(self.problem, forward(self.problem, self.trajectory, exact=tracked is not None, tracked=tracked))

    @property
    def ways(self) -> dict[str, tuple[Callable[[], Scores], int]]:
        """Name -> what to run and how many examples it scores."""
        n, few = self.problem.n_train, len(self.tracked)
        return {
            "exact, adjoint": (lambda: reverse(self.problem, self.trajectory), n),
            "exact, forward": (lambda: self.forwards(self.tracked), few),
            "Hessian-free, adjoint": (lambda: hessian_free(self.problem, self.trajectory), n),
            "Hessian-free, forward": (lambda: self.forwards(None), n),
        }


def trained(data: Data, epochs: int, tracked: int) -> tuple[Subject, float]:
    """The subject, and the seconds of its training."""
    experiment = Experiment(data, LeNet(), Sgd(lr=0.01, epochs=epochs, batch_size=BATCH), Supervised(), MeanLoss())
    model = experiment.train(SEED, Store(None))
    record = Laboratory(experiment, Store(None), SEED, MEMORY, 1, 1, model)
    rows = torch.linspace(0, data.n_train - 1, tracked).long()
    return Subject(experiment.problem(model, SEED, MEMORY), record.trajectory, rows), model.seconds


def measured(way: Callable[[], Scores]) -> tuple[Scores, float, float]:
    """What a way gives, its seconds, and the mebibytes by which it raised the peak."""
    found: list[Scores] = []
    before, peak = Peak(False).nbytes(), Peak(False)
    taken = seconds(lambda: found.append(way()))
    return found[0], taken, (peak.nbytes() - before) / 2**20


def compare(subject: Subject, training: float) -> None:
    header("form", "examples", "seconds", "ms an example", "memory, MiB", "difference to adjoint")
    each: dict[str, float] = {}
    scores: dict[str, Scores] = {}
    for name, (way, count) in subject.ways.items():
        scores[name], taken, mebibytes = measured(way)
        each[name] = taken / count
        adjoint = scores[f"{name.split(',')[0]}, adjoint"]
        same = adjoint if len(adjoint) == count else adjoint[subject.tracked]
        apart = "" if name.endswith("adjoint") else f"{distance(scores[name], same):.1e}"
        row(name, count, f"{taken:.1f}", f"{1e3 * each[name]:.3g}", f"{mebibytes:.0f}", apart)
    print(
        f"\nTraining took {training:.1f} s. An example exactly: the adjoint form is {each['exact, forward'] / each['exact, adjoint']:.0f} "
        f"times as fast as the forward form. Forwards, an example without Hessians is "
        f"{each['exact, forward'] / each['Hessian-free, forward']:.0f} times as fast as with them."
    )


def distance(one: Scores, other: Scores) -> float:
    return ((one - other).norm() / other.norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of Fashion-MNIST's files; without it, mnist5k")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--tracked", type=int, default=4, metavar="K", help="examples that the forward form follows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="256 images, 2 epochs: shows that all runs, not how fast")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size, epochs = (256, 2) if options.quick else (N_TRAIN, EPOCHS)
    dataset = (
        FashionMnist(root=options.root, train_size=size, test_size=N_TEST) if options.root else Mnist5k(train_size=size, test_size=N_TEST)
    )
    data = dataset.load().to(getattr(torch, options.dtype), "cpu")
    trained(data, 1, 2)  # what torch imports and chooses once belongs to no way
    print(f"{data.name}, {size} images, {epochs} epochs, LeNet-5, {options.dtype}, {options.threads} thread(s), {processor()}\n")
    compare(*trained(data, epochs, options.tracked))


if __name__ == "__main__":
    main()
