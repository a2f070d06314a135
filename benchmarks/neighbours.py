"""Other influence libraries, each behind one small function: the same model, rows and loss in, the score matrix out.

They need an environment of their own (pyDVL asks for an older NumPy than influx takes, and runs with the newer one all the same):

    pip install -e . && pip install kronfluence captum dattri traker
    pip install --no-deps pydvl && pip install pyDeprecate more-itertools cloudpickle psutil dask distributed "zarr>=3" numcodecs cvxpy

Every function returns `Scored`: scores [n_train, n_test] with training examples as rows, positive where removing the training example
raises the test loss, and the seconds of each stage. Where a library's scores have a scale they come in influx's: the predicted change of
the test loss, nats for cross-entropy. Imports stay inside the functions: a library that is missing stops nobody but its own function, and
the first call of each pays for them (warm up before timing).

Symbols: n training examples, g_i and h_t gradients of a training and a test loss, H the mean Hessian, F the mean Fisher matrix.
"""

from __future__ import annotations

import copy
import gc
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported: no library spends time on progress bars

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

Rows = tuple[Tensor, Tensor]  # inputs and targets
Loss = Callable[[Tensor, Tensor], Tensor]  # outputs [batch, out] and targets [batch] to losses [batch]
CROSS_ENTROPY: Loss = partial(cross_entropy, reduction="none")
SOLVERS = ("direct", "cg", "nystroem", "arnoldi")  # pyDVL's
ATTRIBUTORS = dict(explicit="Explicit", cg="CG", arnoldi="Arnoldi", lissa="LiSSA", datainf="DataInf", ekfac="EKFAC")  # dattri's


class Scored(NamedTuple):
    scores: Tensor  # [n_train, n_test]
    seconds: dict[str, float]  # a stage


class Blocks(Dataset):
    """Rows that a loader takes a block at a time by one indexing, not one by one and stacked: the fastest that each library allows."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows[1])

    def __getitem__(self, index: int) -> list[Tensor]:
        return [part[index] for part in self.rows]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        chosen = slice(indices[0], indices[-1] + 1) if indices == list(range(indices[0], indices[-1] + 1)) else indices
        return [part[chosen] for part in self.rows]


def whole(block: list[Tensor]) -> list[Tensor]:
    """Collation of what is a batch already."""
    return block


def loader(rows: Rows, batch: int | None) -> DataLoader:
    """In order; None is one batch of all rows."""
    return DataLoader(Blocks(rows), batch_size=batch or len(rows[1]), collate_fn=whole)


def single(rows: Rows) -> Rows:
    """For what takes no float64."""
    inputs, targets = rows
    return inputs.float(), targets.float() if targets.is_floating_point() else targets


class Clock:
    """Seconds of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


def scratch() -> tempfile.TemporaryDirectory[str]:
    """For libraries that insist on files: in memory where there is such a place."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)


@contextmanager
def few_objects() -> Iterator[None]:
    """kronfluence collects garbage after every step, 0.2 s each over the objects of all that is imported: those are set aside."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def kronfluence(
    module: nn.Module, train: Rows, test: Rows, *, strategy: str = "ekfac", damping: float | None = 1e-8, loss: Loss = CROSS_ENTROPY,
    empirical: bool = False, batch: int | None = None, seed: int = 0, collecting: bool = False,
) -> Scored:  # fmt: skip
    """`h_tᵀ (F + damping)⁻¹ g_i / n`, F block-diagonal over Linear and Conv2d layers (Grosse et al. 2023).

    `strategy` is "ekfac", "kfac", "diagonal" or "identity" (`h_tᵀ g_i / n`). `damping` is added to F's eigenvalues; None is 0.1 times
    their mean, layer by layer. F has labels drawn from the model, or with `empirical` the true ones. Number type: the module's.
    `collecting` lets it collect garbage as it does in a user's program.
    """
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from kronfluence.utils.dataset import DataLoaderKwargs

    class Given(Task):
        def compute_train_loss(self, batch: Rows, model: nn.Module, sample: bool = False) -> Tensor:
            outputs = model(batch[0])
            return loss(outputs, drawn(outputs.detach(), batch[1]) if sample else batch[1]).sum()

        def compute_measurement(self, batch: Rows, model: nn.Module) -> Tensor:
            return loss(model(batch[0]), batch[1]).sum()

    clock, dtype, task = Clock(), train[0].dtype, Given()
    torch.manual_seed(seed)
    factor_types = ("activation_covariance", "gradient_covariance", "per_sample_gradient", "lambda")
    factors = FactorArguments(strategy=strategy, use_empirical_fisher=empirical, **{f"{name}_dtype": dtype for name in factor_types})
    score_types = {f"{name}_dtype": dtype for name in ("per_sample_gradient", "precondition", "score")}
    arguments = ScoreArguments(damping_factor=damping, **score_types)
    with scratch() as folder, nullcontext() if collecting else few_objects():
        with clock.stage("fit"):
            prepared = prepare_model(copy.deepcopy(module), task)
            analyzer = Analyzer("benchmark", prepared, task, cpu=True, log_level=logging.ERROR, disable_tqdm=True, output_dir=folder)
            analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=whole))
            analyzer.fit_all_factors("factors", Blocks(train), batch or len(train[1]), factor_args=factors)
        with clock.stage("score"):
            analyzer.compute_pairwise_scores(
                "scores", "factors", Blocks(test), Blocks(train), len(test[1]),
                per_device_train_batch_size=batch or len(train[1]), score_args=arguments,
            )  # fmt: skip
            scores = analyzer.load_pairwise_scores("scores")["all_modules"]  # [n_test, n_train]
    return Scored(scores.T / len(train[1]), clock.seconds)


def drawn(outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets from the model's own distribution: labels from the softmax, numbers with unit variance."""
    if targets.is_floating_point():
        return outputs.squeeze(-1) + torch.randn_like(targets)
    return torch.multinomial(outputs.softmax(-1), 1).squeeze(-1)


Checkpoint = tuple[dict[str, Tensor], float]  # a state dict and its learning rate


def captum_tracin(
    module: nn.Module, train: Rows, test: Rows, checkpoints: Sequence[Checkpoint], *, loss: Loss = CROSS_ENTROPY, batch: int | None = None,
    last_layer: str | None = None,
) -> Scored:  # fmt: skip
    """`Σ_c rate_c h_tᵀ g_i` over checkpoints (Pruthi et al. 2020): all parameters, per-sample gradients by hooks on Linear and Conv2d.

    With `last_layer`, a Linear module's name: TracInCPFast, that layer's weight alone (its bias is left out).
    """
    from captum.influence import TracInCP, TracInCPFast

    def summed(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss(outputs, targets).sum()

    def load(model: nn.Module, checkpoint: Checkpoint) -> float:
        model.load_state_dict(checkpoint[0])
        return checkpoint[1]

    summed.reduction = "sum"  # type: ignore[attr-defined]
    clock = Clock()
    with clock.stage("score"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, points = copy.deepcopy(module).eval(), list(checkpoints)
        if last_layer is None:
            method = TracInCP(model, loader(train, batch), points, load, loss_fn=summed, sample_wise_grads_per_batch=True)
        else:
            method = TracInCPFast(model, last_layer, loader(train, batch), points, load, loss_fn=summed)
        scores = method.influence(tuple(test))  # [n_test, n_train]
    return Scored(scores.detach().T, clock.seconds)


def dattri_influence(
    module: nn.Module, train: Rows, test: Rows, *, solver: str, damping: float, loss: Loss = CROSS_ENTROPY, test_batch: int | None = None,
    **settings: Any,
) -> Scored:  # fmt: skip
    """`h_tᵀ (H + damping)⁻¹ g_i / n` by a solver of `ATTRIBUTORS`, with its own `settings` (cg: max_iter; arnoldi: proj_dim, max_iter).

    All training rows are one batch: from several batches dattri adds up the inverses of each one's Hessian. Its scores are float32; cg goes
    to `max_iter` always, and holds all rows' activations for each of `test_batch` test examples. In 0.3.0 ekfac projects on transposed
    eigenvectors and arnoldi gives NaN once it meets a negative eigenvalue: neither is to be compared with.
    """
    from dattri import algorithm
    from dattri.task import AttributionTask

    model = copy.deepcopy(module).eval()
    if solver in ("arnoldi", "lissa", "datainf"):
        model, train, test = model.float(), single(train), single(test)

    def mean(params: dict[str, Tensor], rows: Rows) -> Tensor:
        return loss(functional_call(model, params, (rows[0],)), rows[1]).mean()

    clock, name = Clock(), "damping" if solver in ("ekfac", "lissa") else "regularization"
    with clock.stage("fit"):
        task = AttributionTask(mean, model, {key: value.clone() for key, value in model.state_dict().items()})
        attributor = getattr(algorithm, f"IFAttributor{ATTRIBUTORS[solver]}")(task, **{name: damping}, **settings)
        attributor.cache(loader(train, None))
    with clock.stage("score"):
        scores = attributor.attribute(loader(train, None), loader(test, test_batch))  # [n_train, n_test]
    return Scored(scores.detach() / len(train[1]), clock.seconds)


def margin(outputs: Tensor, labels: Tensor) -> Tensor:
    """log(p_y / (1 − p_y)): what TRAK linearises."""
    own = outputs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    is_label = labels.unsqueeze(-1) == torch.arange(outputs.shape[-1])
    return own - outputs.masked_fill(is_label, -torch.inf).logsumexp(-1)


def dattri_trak(
    module: nn.Module, train: Rows, test: Rows, *, dim: int = 512, damping: float = 0.0, kind: str = "normal", batch: int | None = None,
    seed: int = 0,
) -> Scored:  # fmt: skip
    """`φ_tᵀ (ΦᵀΦ + damping)⁻¹ φ_i (1 − p_i)`, φ the gradient of the margin projected to `dim` (Park et al. 2023); no scale.

    The projection is made anew for every batch, so one batch of all rows is the fastest; `kind` is "normal", "rademacher" or "identity".
    """
    from dattri.algorithm import TRAKAttributor
    from dattri.task import AttributionTask

    model = copy.deepcopy(module).eval()

    def target(params: dict[str, Tensor], row: Rows) -> Tensor:
        return margin(functional_call(model, params, (row[0].unsqueeze(0),)), row[1].unsqueeze(0)).squeeze(0)

    def probability(params: dict[str, Tensor], row: Rows) -> Tensor:
        return target(params, row).sigmoid()

    clock, projector = Clock(), {"proj_dim": dim, "proj_type": kind, "proj_seed": seed, "device": "cpu"}
    with clock.stage("fit"):
        task = AttributionTask(target, model, {key: value.clone() for key, value in model.state_dict().items()})
        attributor = TRAKAttributor(task, probability, projector_kwargs=projector, regularization=damping)
        attributor.cache(loader(train, batch))
    with clock.stage("score"):
        scores = attributor.attribute(loader(test, batch))  # [n_train, n_test]
    return Scored(scores.detach(), clock.seconds)


def traker(
    module: nn.Module, train: Rows, test: Rows, *, dim: int = 512, damping: float = 0.0, batch: int | None = None, block: int | None = None,
    seed: int = 0,
) -> Scored:  # fmt: skip
    """TRAK by its authors' package, `BasicProjector` with Gaussian entries in float32; no scale (it divides by a mean).

    `block` columns of the projection are made at a time; None is all of them, once. Smaller blocks are made anew for every batch.
    """
    from trak import TRAKer
    from trak.projectors import BasicProjector, ProjectionType

    model, clock = copy.deepcopy(module).float().eval(), Clock()
    state, size = model.state_dict(), sum(value.numel() for value in model.parameters())
    train, test = single(train), single(test)
    with scratch() as folder, torch.no_grad():
        with clock.stage("fit"):
            projector = BasicProjector(size, dim, seed, ProjectionType.normal, "cpu", block_size=block or dim)
            if block is None:
                projector.free_memory = lambda: None  # it forgets the one block before scoring and then fails for want of it
            method = TRAKer(
                model, "image_classification", len(train[1]), folder, device="cpu", projector=projector, proj_dim=dim,
                logging_level=logging.ERROR, use_half_precision=False, lambda_reg=damping,
            )  # fmt: skip
            method.load_checkpoint(state, model_id=0)
            for inputs, labels in loader(train, batch):
                method.featurize((inputs, labels), num_samples=len(labels))
            method.finalize_features()
        with clock.stage("score"):
            method.start_scoring_checkpoint("test", state, model_id=0, num_targets=len(test[1]))
            for inputs, labels in loader(test, batch):
                method.score((inputs, labels), num_samples=len(labels))
            scores = torch.tensor(method.finalize_scores("test"))  # [n_train, n_test]; a copy: the file goes
    return Scored(scores, clock.seconds)


def pydvl_influence(
    module: nn.Module, train: Rows, test: Rows, *, solver: str, damping: float, loss: Loss = CROSS_ENTROPY, empirical: bool = False,
    batch: int | None = None, residual: float = 1e-5, max_iter: int | None = None, rank: int = 100,
) -> Scored:  # fmt: skip
    """`h_tᵀ (H + damping)⁻¹ g_i / n` by a solver of `SOLVERS`; H the Hessian, with `empirical` what pyDVL calls GAUSS_NEWTON.

    That is the mean of `g_i g_iᵀ` at the true labels, the empirical Fisher matrix, also where the Gauss-Newton matrix is the Hessian.

    "direct": dense. "cg": block conjugate gradients, all test examples at once, to a relative `residual` (pyDVL squares its tolerances).
    "nystroem", "arnoldi": rank `rank`. `batch` bounds the memory of a product, which goes over all test examples at once.
    """
    from pydvl.influence import torch as pydvl
    from pydvl.influence.torch.util import SecondOrderMode

    def mean(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss(outputs, targets).mean()

    model = copy.deepcopy(module).eval()
    mode = SecondOrderMode.GAUSS_NEWTON if empirical else SecondOrderMode.HESSIAN
    common = {"regularization": damping, "second_order_mode": mode}
    settings: dict[str, tuple[str, dict[str, Any]]] = {
        "direct": ("DirectInfluence", {}),
        "cg": ("CgInfluence", {"rtol": residual**0.5, "atol": 0.0, "maxiter": max_iter, "solve_simultaneously": True}),
        "nystroem": ("NystroemSketchInfluence", {"rank": rank}),
        "arnoldi": ("ArnoldiInfluence", {"rank": rank, "use_woodbury": True}),
    }
    kind, own = settings[solver]
    return _pydvl(getattr(pydvl, kind)(model, mean, **common, **own), train, test, batch)


def pydvl_ekfac(
    module: nn.Module, train: Rows, test: Rows, *, damping: float, corrected: bool = True, batch: int | None = None,
) -> Scored:  # fmt: skip
    """`h_tᵀ (F + damping)⁻¹ g_i / n`, Linear layers and cross-entropy alone, in float32; without `corrected` it is K-FAC.

    F is not sampled: the gradient of `Σ_c √p_c log p_c` stands for all labels at once, with their cross terms.
    """
    from pydvl.influence.torch import EkfacInfluence

    model, train, test = copy.deepcopy(module).float().eval(), single(train), single(test)
    return _pydvl(EkfacInfluence(model, update_diagonal=corrected, hessian_regularization=damping), train, test, batch)


def _pydvl(method: Any, train: Rows, test: Rows, batch: int | None) -> Scored:
    clock = Clock()
    with clock.stage("fit"):
        method.fit(loader(train, batch))
    with clock.stage("score"):
        scores = method.influences(*test, *train)  # [n_test, n_train]
    return Scored(scores.detach().T / len(train[1]), clock.seconds)
