"""Other libraries' estimates behind this package's contract: against its own methods and dense float64 references; what is refused."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import CLASSIFIERS, NAMES, Prediction, answers, dense, experiment, problem
from torch import Tensor, nn
from torch.testing import assert_close

from influx.errors import InfluxError
from influx.estimators import Estimator
from influx.estimators import _neighbours as neighbours
from influx.estimators.captum import Captum
from influx.estimators.dattri import Dattri
from influx.estimators.grad_dot import GradDot
from influx.estimators.inverse_curvature import InverseCurvature
from influx.estimators.kronfluence import Kronfluence
from influx.estimators.tracin import TracIn
from influx.estimators.trak import Trak
from influx.measurements import LogProbability, Margin, MeanLoss
from influx.models import Model
from influx.problem import Problem
from influx.record import Facts, Record
from influx.solvers.datainf import DataInf
from influx.solvers.ekfac import Ekfac
from influx.solvers.kfac import Kfac
from influx.trajectory import Descent, Snapshot, Trajectory

SEED = 3
PLAIN = ("ridge", "softmax", "mlp", "conv")
METHODS: dict[str, Callable[..., Estimator]] = {"kronfluence": Kronfluence, "captum": Captum, "dattri": Dattri}
each_method = pytest.mark.parametrize("package", METHODS)


class Run(Record):
    """A training that left three checkpoints: the fitted parameters, and two places around them."""

    def __init__(self, fitted: Problem) -> None:
        generator = torch.Generator().manual_seed(0)

        def moved(params: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value + 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in params.items()}

        snapshots = tuple(Snapshot(step, moved(fitted.params)) for step in (0, 2, 3))
        self.made = Trajectory(snapshots, (0.4, 0.3, 0.2, 0.1), fitted.params, lambda *_: iter(()), 2**20, Descent(0.0, False, 0.0))

    @property
    def facts(self) -> Facts:
        return Facts(4, 8, self.made.descent)

    def check_trajectory(self) -> None:
        pass

    @property
    def trajectory(self) -> Trajectory:
        return self.made

    def models(self, count):
        raise NotImplementedError

    def without(self, sets, *, average):
        raise NotImplementedError

    def recall(self, name, options, work):
        raise NotImplementedError

    def masked(self, masks, count):
        raise NotImplementedError

    mislabelled = np.empty(0, dtype=np.int64)


def run(method: Estimator, fitted: Problem, seed: int = SEED) -> Tensor:
    record = Run(fitted)
    method.plan(fitted, record)
    return method.estimate(fitted, record, seed).influence


def close(one: Tensor, other: Tensor, relative: float) -> None:
    """Equal relative to the largest score."""
    assert one.dtype == other.dtype
    assert_close(one, other, rtol=0, atol=relative * other.abs().max().item())


def changed(fitted: Problem, **changes: object) -> Problem:
    return replace(fitted, **changes)  # type: ignore[arg-type]


MEASURED = {
    "loss": lambda fitted: fitted,
    "margin": lambda fitted: changed(fitted, measurement=Margin()),
    "log_probability": lambda fitted: changed(fitted, measurement=LogProbability()),
    "prediction": lambda fitted: changed(fitted, measurement=Prediction()),
    "mean_loss": lambda fitted: changed(fitted, measurement=MeanLoss()),
}
each_measurement = pytest.mark.parametrize("measured", MEASURED)

# ------------------------------------------------------------------------------------------------------------- kronfluence


@each_measurement
@pytest.mark.parametrize("name", ["softmax", "mlp", "conv"])
def test_kronfluences_identity_is_the_gradient_product(name, measured):
    pytest.importorskip("kronfluence")
    fitted = MEASURED[measured](problem(name))
    # float64 products of gradients by two codes
    close(run(Kronfluence("identity"), fitted), run(GradDot(), fitted) / fitted.n_train, 1e-12)


@pytest.mark.parametrize("empirical", [True, False])
@pytest.mark.parametrize("name", PLAIN)
def test_kronfluences_ekfac_is_this_packages_fisher_ekfac(name, empirical):
    """Both with λ + damping, the same labels or the same draws."""
    pytest.importorskip("kronfluence")
    fitted = problem(name)
    ours = InverseCurvature(Ekfac("empirical" if empirical else "sampled"), "fisher", 0.05)
    # eigenvectors of float64 covariances, whose rounding enters times a condition below 100
    close(run(Kronfluence("ekfac", 0.05, empirical), fitted), run(ours, fitted), 1e-9)


@pytest.mark.parametrize("name", ["ridge", "softmax", "mlp"])
def test_kronfluences_kfac_is_this_packages_fisher_kfac(name):
    pytest.importorskip("kronfluence")
    fitted = problem(name)
    close(run(Kronfluence("kfac", 0.05, True), fitted), run(InverseCurvature(Kfac("empirical"), "fisher", 0.05), fitted), 1e-9)


@pytest.mark.parametrize("damping", [0.05, "auto"])
@pytest.mark.parametrize("name", PLAIN)
def test_kronfluences_diagonal_in_dense_algebra(name, damping):
    """(1/n) ∇m · ∇ℓ / (mean ∇ℓ² + δ), δ = λ + damping, or a layer's 0.1 x mean without λ."""
    pytest.importorskip("kronfluence")
    fitted, known = problem(name), answers(name)
    fisher = known.train_gradients.square().mean(0)
    shift = torch.full_like(fisher, fitted.weight_decay + 0.05)
    if damping == "auto":
        for layer in fitted.matrix_layers:
            places = torch.cat([torch.arange(part.start, part.stop) for part in (layer.weight, layer.bias) if part is not None])
            shift[places] = 0.1 * fisher[places].mean()
    wanted = known.train_gradients @ (known.test_gradients / (fisher + shift)).T / fitted.n_train
    close(run(Kronfluence("diagonal", damping, True), fitted), wanted, 1e-11)


def test_kronfluences_output_layer_alone():
    pytest.importorskip("kronfluence")
    fitted = problem("mlp")
    ours = InverseCurvature(Ekfac("empirical"), "fisher", 0.05, "last_layer")
    close(run(Kronfluence("ekfac", 0.05, True, params="last_layer"), fitted), run(ours, fitted), 1e-9)


def test_kronfluences_batches_and_blocks_change_nothing():
    pytest.importorskip("kronfluence")
    fitted = problem("conv")
    whole = run(Kronfluence(damping=0.05), fitted)
    close(run(Kronfluence(damping=0.05, batch_size=7), changed(fitted, memory=12 * fitted.theta.nbytes)), whole, 1e-10)


def test_kronfluence_is_calibrated_but_for_the_identity():
    assert [Kronfluence(strategy).calibrated for strategy in ("ekfac", "kfac", "diagonal", "identity")] == [True, True, True, False]


def test_the_identity_has_nothing_to_damp():
    with pytest.raises(InfluxError, match=r"method\.strategy=identity inverts nothing.*leave method\.damping=auto"):
        Kronfluence("identity", 0.1)


def test_kronfluence_leaves_no_files(tmp_path, monkeypatch):
    pytest.importorskip("kronfluence")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run(Kronfluence(), problem("softmax"))
    assert list(Path(tmp_path).iterdir()) == []


# ------------------------------------------------------------------------------------------------------------------ captum


@each_measurement
@pytest.mark.parametrize("name", ["softmax", "mlp", "conv"])
def test_captum_is_tracin_over_the_stored_checkpoints(name, measured):
    pytest.importorskip("captum")
    fitted = MEASURED[measured](problem(name))
    close(run(Captum(), fitted), run(TracIn("stored"), fitted), 1e-12)


def test_captum_in_regression():
    pytest.importorskip("captum")
    close(run(Captum(), problem("ridge")), run(TracIn("stored"), problem("ridge")), 1e-12)


@pytest.mark.parametrize("name", ["softmax", "mlp", "conv"])
def test_captums_fast_form_is_the_output_layers_weight(name):
    pytest.importorskip("captum")
    fitted = problem(name)
    weight = fitted.select("last_layer").selected[0]
    close(run(Captum(fast=True), fitted), run(TracIn("stored", params=weight), fitted), 1e-12)


def test_captums_output_layer_alone():
    pytest.importorskip("captum")
    fitted = problem("mlp")
    close(run(Captum(params="last_layer"), fitted), run(TracIn("stored", params="last_layer"), fitted), 1e-12)


def test_captums_blocks_change_nothing():
    pytest.importorskip("captum")
    fitted = problem("conv")
    close(run(Captum(), changed(fitted, memory=16 * fitted.theta.nbytes)), run(Captum(), fitted), 1e-12)


def test_captums_fast_form_takes_no_choice_of_parameters():
    with pytest.raises(InfluxError, match=r"method\.fast=true is about the output layer's weight.*leave method\.params=all"):
        Captum(fast=True, params="last_layer")


@dataclass(frozen=True)
class ConvOnly(Model):
    """A user's model whose output layer is a convolution."""

    def module(self, shape):
        return nn.Sequential(nn.Conv2d(shape.inputs[0], shape.n_outputs, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_captums_fast_form_needs_a_linear_output_layer(monkeypatch):
    present(monkeypatch)
    fitted = experiment("conv", model=ConvOnly()).untrained(0, 2**30)
    with pytest.raises(InfluxError, match=r"fast form needs a linear output layer.*method\.fast=false"):
        Captum(fast=True).plan(fitted, Run(fitted))


# ------------------------------------------------------------------------------------------------------------------ dattri


@pytest.mark.parametrize("params", ["all", "last_layer"])
@pytest.mark.parametrize("name", NAMES)
def test_dattris_explicit_is_the_dense_hessians_inverse(name, params):
    pytest.importorskip("dattri")
    fitted = problem(name)
    wanted = dense(fitted.select(params)).influence("hessian", 0.3)
    close(run(Dattri("explicit", 0.3, params=params), fitted), wanted, 1e-10)  # a dense solve, condition below 100


@each_measurement
def test_dattris_explicit_of_any_measurement(measured):
    pytest.importorskip("dattri")
    fitted = MEASURED[measured](problem("mlp"))
    close(run(Dattri("explicit", 0.3), fitted), dense(fitted).influence("hessian", 0.3), 1e-10)


@pytest.mark.parametrize("name", ["ridge", "softmax", "mlp"])
def test_dattris_cg_reaches_it(name):
    """P steps and some more end conjugate gradients but for rounding."""
    pytest.importorskip("dattri")
    close(run(Dattri("cg", 0.3, max_iterations=40), problem(name)), answers(name).influence("hessian", 0.3), 1e-8)


@pytest.mark.parametrize("name", PLAIN)
def test_dattris_datainf_is_this_packages(name):
    pytest.importorskip("dattri")
    fitted = problem(name)
    close(run(Dattri("datainf", 0.3), fitted), run(InverseCurvature(DataInf(), "fisher", 0.3), fitted), 1e-11)


@each_measurement
@pytest.mark.parametrize("damping", [0.2, "auto"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_dattris_trak_without_a_projection_is_this_packages(name, damping, measured):
    """From dim = P on neither projects, so that nothing random is left: the formula with its sign, scale and damping."""
    pytest.importorskip("dattri")
    fitted = MEASURED[measured](problem(name))
    close(run(Dattri(damping=damping), fitted), run(Trak(damping=damping), fitted), 1e-9)


def test_dattris_trak_in_regression():
    pytest.importorskip("dattri")
    close(run(Dattri(damping=0.2), problem("ridge")), run(Trak(damping=0.2), problem("ridge")), 1e-10)


def test_dattris_projection_keeps_what_it_should():
    """For large damping TRAK is a product of projected gradients, which over many draws is that of the gradients themselves."""
    pytest.importorskip("dattri")
    fitted = problem("conv")
    whole = run(Dattri(damping=1e6), fitted)
    drawn = torch.stack([run(Dattri(damping=1e6, dim=120), fitted, seed) for seed in range(20)]).mean(0)
    # 2,400 dimensions in all: relative errors of about √(2/2400) = 0.03 on the diagonal of the products
    assert torch.corrcoef(torch.stack([whole.flatten(), drawn.flatten()]))[0, 1] > 0.98
    assert abs((drawn * whole).sum() / whole.square().sum() - 1) < 0.15


def test_dattris_blocks_of_test_examples_change_nothing():
    pytest.importorskip("dattri")
    fitted = problem("mlp")
    least = Dattri("cg").plan(fitted, Run(fitted)).nbytes
    small = changed(fitted, memory=int(1.5 * least))
    assert Dattri("cg")._columns(small) < len(fitted.test)
    close(run(Dattri("cg", 0.3), small), run(Dattri("cg", 0.3), fitted), 1e-11)


def test_dattri_is_calibrated_but_for_trak():
    assert [Dattri(algorithm).calibrated for algorithm in ("explicit", "cg", "datainf", "trak")] == [True, True, True, False]


@pytest.mark.parametrize("algorithm", ["explicit", "cg", "datainf"])
def test_dattri_says_early_what_the_memory_does_not_hold(algorithm, monkeypatch):
    present(monkeypatch)
    with pytest.raises(InfluxError, match=rf"dattri's {algorithm} takes all training rows at once, about .* where 1 KiB are allowed: set"):
        Dattri(algorithm).plan(changed(problem("mlp"), memory=1024), Run(problem("mlp")))


def test_dattris_singular_projection_is_refused(monkeypatch):
    present(monkeypatch)
    with pytest.raises(InfluxError, match=r"method\.dim=50 dimensions of 36 gradients of 31 parameters.*method\.dim to at most 31"):
        Dattri(damping=0.0, dim=50).plan(problem("mlp"), Run(problem("mlp")))


# -------------------------------------------------------------------------------------------------------------- all of them


OPTIONS: dict[str, Estimator] = {
    "kronfluence": Kronfluence(), "captum": Captum(), "captum fast": Captum(fast=True), "dattri trak": Dattri(dim=20),
    "dattri explicit": Dattri("explicit"), "dattri cg": Dattri("cg"), "dattri datainf": Dattri("datainf"),
}  # fmt: skip
each_option = pytest.mark.parametrize("option", OPTIONS)


def there(option: str) -> Estimator:
    pytest.importorskip(option.split()[0])
    return OPTIONS[option]


@each_option
def test_float32_agrees_with_float64(option):
    from problems import cast

    method = there(option)
    fitted = problem("softmax")
    single = run(method, cast(fitted, torch.float32))
    assert single.dtype == torch.float32
    close(single.double(), run(method, fitted), 2e-4)  # float32's 6e-8 times conditions up to 1e3


@each_option
def test_nothing_global_is_touched_and_the_same_seed_gives_the_same_bytes(option):
    method, fitted = there(option), problem("mlp")
    before = {key: value.clone() for key, value in fitted.module.state_dict().items()}
    torch.manual_seed(1)
    state, objects, place, level = torch.random.get_rng_state(), gc.get_freeze_count(), dict(os.environ), logging.getLogger().level
    one = run(method, fitted)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    assert gc.get_freeze_count() == objects
    assert dict(os.environ) == place
    assert logging.getLogger().level == level
    assert all(torch.equal(value, before[key]) for key, value in fitted.module.state_dict().items())
    assert all(parameter.requires_grad for parameter in fitted.module.parameters())
    assert not one.requires_grad
    torch.manual_seed(2)
    assert torch.equal(run(method, fitted), one)


@each_option
def test_the_library_says_nothing(option, capfd, caplog, recwarn):
    method, fitted = there(option), problem("mlp")
    with caplog.at_level(logging.DEBUG):
        run(method, fitted)
    assert (*capfd.readouterr(), caplog.text, list(recwarn)) == ("", "", "", [])


@each_option
@pytest.mark.parametrize("name", ["ridge", "softmax", "mlp"])
def test_a_training_example_is_helpful_to_itself(option, name):
    method, fitted = there(option), problem(name)
    assert (run(method, changed(fitted, test=fitted.train)).diagonal() > 0).all()


def present(monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "find_spec", lambda name: object())


@each_method
def test_a_missing_package_is_said_before_training(package, monkeypatch):
    monkeypatch.setattr(neighbours, "find_spec", lambda name: None)
    fitted = experiment("softmax").untrained(0, 2**30)
    with pytest.raises(InfluxError, match=rf"^method={package} needs the package {package}: pip install 'influx\[neighbours\]'\.$"):
        METHODS[package]().plan(fitted, Run(fitted))


class _Sharing(nn.Module):
    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(features, features), nn.Linear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(torch.tanh(self.hidden(x.flatten(1)))))


@dataclass(frozen=True)
class Sharing(Model):
    """A user's model that goes through one layer twice."""

    def module(self, shape):
        return _Sharing(shape.n_features, shape.n_outputs)


@dataclass(frozen=True)
class Scaled(Model):
    """A user's model with parameters outside linear layers."""

    def module(self, shape):
        return nn.Sequential(nn.Flatten(), nn.LayerNorm(shape.n_features), nn.Linear(shape.n_features, shape.n_outputs))


@dataclass(frozen=True)
class Bare(Model):
    """A user's model that is a layer, in no container."""

    def module(self, shape):
        return nn.Linear(shape.n_features, shape.n_outputs)


def untrained(model: Model) -> Problem:
    return experiment("softmax", model=model).untrained(0, 2**30)


LAYERED = {"kronfluence": Kronfluence, "captum": Captum}
each_layered = pytest.mark.parametrize("package", LAYERED)


@each_layered
def test_parts_of_a_layer_are_refused(package, monkeypatch):
    present(monkeypatch)
    with pytest.raises(InfluxError, match=rf"{package} takes whole layers, not parts of '1'.*method\.params=all, last_layer"):
        LAYERED[package](params="1.weight").plan(problem("mlp"), Run(problem("mlp")))


@each_layered
def test_a_layer_that_is_used_twice_is_refused(package, monkeypatch):
    present(monkeypatch)
    fitted = untrained(Sharing())
    with pytest.raises(InfluxError, match=rf"{package} takes layers that are used once, and 'hidden' is used 2 times: use method=cg"):
        LAYERED[package]().plan(fitted, Run(fitted))


@each_layered
def test_a_layer_of_another_kind_is_refused(package, monkeypatch):
    present(monkeypatch)
    fitted = untrained(Scaled())
    with pytest.raises(InfluxError, match=r"works on linear and convolution layers.*use method=cg"):
        LAYERED[package]().plan(fitted, Run(fitted))


def test_a_module_that_is_one_layer():
    pytest.importorskip("kronfluence")
    pytest.importorskip("captum")
    fitted = untrained(Bare())
    close(run(Kronfluence("identity"), fitted), run(GradDot(), fitted) / fitted.n_train, 1e-12)
    close(run(Captum(), fitted), run(TracIn("stored"), fitted), 1e-12)


@pytest.mark.parametrize("model", [Sharing(), Scaled()], ids=lambda model: type(model).__name__)
def test_dattri_takes_any_module(model):
    pytest.importorskip("dattri")
    fitted = untrained(model)
    close(run(Dattri("explicit", 2.0), fitted), dense(fitted).influence("hessian", 2.0), 1e-9)
