"""Influence functions by the library kronfluence (Grosse et al. 2023, "Studying large language model generalization with influence
functions", sections 2.2 and 3), as it is, in the same table as this package's own.

    influence[i, t] = (1/n) ∇m_tᵀ (F + δ)⁻¹ ∇ℓ_i,

F the mean Fisher matrix a layer at a time, in a form that `strategy` names: "ekfac", "kfac", "diagonal", or "identity", which is
`(1/n) ∇m_tᵀ ∇ℓ_i`. Checked against 1.0.1.

1. The library knows no weight decay. When damping is a number, δ is λ + damping.
2. damping=auto is the library's own rule: δ is 0.1 x the mean eigenvalue of each layer's F, and λ is not added, as the library takes one
   number for all layers or none. (`method=ekfac` adds λ to it.)
3. Labels that are drawn are drawn once an example and are the same in both of EK-FAC's passes, and the same as in `method=ekfac
   method.curvature=fisher method.solver.labels=sampled`; the library leaves the draw to its user.
4. K-FAC of a convolution: the library averages the output gradients' covariance over places, where Grosse & Martens 2016 (section 3.1) sum,
   so that F is too small by the number of places. EK-FAC is free of that.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from influx import rules
from influx.cost import Cost
from influx.errors import InfluxError
from influx.estimators._neighbours import Blocks, as_is, batch_rows, few_objects, loaded, quiet, require, returned, whole_layers
from influx.estimators.base import Estimate, Estimator
from influx.kronecker import check_draws, drawn, uniforms
from influx.problem import Problem
from influx.record import Record
from influx.seeding import isolated

PASSES = {"identity": 0, "diagonal": 1, "kfac": 1, "ekfac": 2}  # over the training rows, before the scores
COPIES = 3  # of a test example's gradient: it, its product with the inverse, and room for that product


@dataclass(frozen=True)
class Kronfluence(Estimator):
    """The formula above; strategy=identity is right only up to a factor.

    Args:
        strategy: the form of F.
        damping: ≥ 0, added to F's eigenvalues beside λ; "auto" as under 2.
        empirical: F has the labels of the data, or else labels drawn from the model's own prediction.
        batch_size: training rows at a time; "auto" as many as fit in a quarter of the memory as dense gradients.
        params: "all", "last_layer", or a pattern of names that selects whole layers.

    Linear layers and convolutions alone. Cost: two or three gradients a training example, and a product of length P a pair.
    Memory: a few gradients for each test example of a block, and a batch of training gradients. Its files go to a temporary folder.

    Raises:
        InfluxError: the package is missing, a layer of another kind or a part of one is selected, or damping is set without an inverse.
    """

    strategy: str = "ekfac"
    damping: float | str = "auto"
    empirical: bool = False
    batch_size: int | str = "auto"
    params: str = "all"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)
        if self.strategy == "identity" and self.damping != "auto":
            raise InfluxError("method.strategy=identity inverts nothing, so there is nothing to damp: leave method.damping=auto.")

    @property
    def calibrated(self) -> bool:  # type: ignore[override]  # a property of the choice, elsewhere of the class
        return self.strategy != "identity"

    def plan(self, problem: Problem, record: Record) -> Cost:
        require("kronfluence")
        problem = problem.select(self.params)
        whole_layers(problem, "kronfluence")
        if not self.empirical and PASSES[self.strategy]:
            check_draws(problem)
        n, m, p = problem.n_train, len(problem.test), problem.n_params
        sides = [layer.shape for layer in problem.matrix_layers]
        vectors = sum(20.0 * (out**3 + wide**3) for out, wide in sides) * (self.strategy in ("kfac", "ekfac"))
        rows = batch_rows(problem, self.batch_size)
        held = (COPIES * _columns(problem) + 3 * rows) * problem.theta.nbytes
        return Cost(gradients=(1 + PASSES[self.strategy]) * n + m, flops=2.0 * n * m * p + vectors, nbytes=held)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        require("kronfluence")
        problem = problem.select(self.params)
        return Estimate(returned(self._scores(problem, seed).T / problem.n_train, problem))

    def _scores(self, problem: Problem, seed: int) -> Float[Tensor, "tests n_train"]:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.utils.dataset import DataLoaderKwargs
        from kronfluence.utils.state import State

        task, rows = make_task(problem, whole_layers(problem, "kronfluence")), batch_rows(problem, self.batch_size)
        width = problem.outputs(problem.theta, problem.train.inputs[:1]).shape[1]
        uniform = problem.theta.new_zeros(problem.n_train, 1) if self.empirical else uniforms(problem, width, seed)
        train = Blocks(problem.train.inputs, problem.train.targets, uniform.to(problem.theta.device))
        test = Blocks(problem.test.inputs, problem.test.targets)
        factors, scores = self._arguments(problem)
        with ExitStack() as around:
            folder = around.enter_context(TemporaryDirectory(prefix="influx-kronfluence-"))
            around.enter_context(isolated(seed, "kronfluence"))
            around.enter_context(few_objects())
            around.enter_context(quiet("kronfluence"))
            State._reset_state()  # it keeps the device of the process's first analysis
            # 5. No log_level: the library would give it to the root logger, and so to everybody.
            model = prepare_model(loaded(problem), task)
            analyzer = Analyzer("influx", model, task, cpu=not problem.theta.is_cuda, disable_tqdm=True, output_dir=folder)
            analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=as_is))
            analyzer.fit_all_factors("factors", train, rows, factor_args=factors)
            analyzer.compute_pairwise_scores(
                "scores", "factors", test, train, _columns(problem), per_device_train_batch_size=rows, score_args=scores
            )
            return analyzer.load_pairwise_scores("scores")["all_modules"]

    def _arguments(self, problem: Problem) -> tuple[Any, Any]:
        """The library's settings for factors and scores: float32 whatever the model is, and 100,000 examples, unless it is told."""
        from kronfluence.arguments import FactorArguments, ScoreArguments

        dtype = problem.theta.dtype
        covariances = {f"{name}_covariance_dtype": dtype for name in ("activation", "gradient")}
        factors = FactorArguments(
            strategy=self.strategy, use_empirical_fisher=self.empirical, per_sample_gradient_dtype=dtype, lambda_dtype=dtype,
            covariance_max_examples=None, lambda_max_examples=None, **covariances,
        )  # fmt: skip
        damping = None if self.damping == "auto" else problem.weight_decay + float(self.damping)
        scores = ScoreArguments(damping_factor=damping, per_sample_gradient_dtype=dtype, precondition_dtype=dtype, score_dtype=dtype)
        return factors, scores


def make_task(problem: Problem, layers: list[str]) -> Any:
    """Loss and measurement as the library wants them: summed over a batch."""
    from kronfluence.task import Task

    class Given(Task):
        def compute_train_loss(self, batch: list[Tensor], model: nn.Module, sample: bool = False) -> Tensor:
            inputs, targets, uniform = batch
            outputs = model(inputs)
            aims = drawn(problem.objective, outputs.detach(), targets, uniform) if sample else targets
            return problem.objective.loss(outputs, aims).sum()

        def compute_measurement(self, batch: list[Tensor], model: nn.Module) -> Tensor:
            return problem.measured(model(batch[0]), batch[1]).sum()

        def get_influence_tracked_modules(self) -> list[str]:
            return layers

    return Given()


def _columns(problem: Problem) -> int:
    """Test examples at a time."""
    each = COPIES * problem.theta.nbytes
    return max(1, min(len(problem.test), problem.memory // 2 // each))
