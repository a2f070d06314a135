"""Data sets: exact sizes, the split rule, scaling, label noise, the real file formats, and every message of refusal."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib
import pickle
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.model_selection import train_test_split

from influx.datasets import Data, Dataset, Source
from influx.datasets.breast_cancer import BreastCancer
from influx.datasets.cifar10 import Cifar10
from influx.datasets.concrete import Concrete
from influx.datasets.csv_file import CsvFile
from influx.datasets.diabetes import Diabetes
from influx.datasets.digits import Digits
from influx.datasets.fashion_mnist import FashionMnist
from influx.datasets.iris import Iris
from influx.datasets.mnist import Mnist
from influx.datasets.mnist5k import Mnist5k
from influx.datasets.wine import Wine
from influx.errors import InfluxError
from influx.vision import torchvision

CONF = Path(__file__).parents[1] / "conf" / "dataset"


@dataclass(frozen=True, kw_only=True)
class MadeUp(Dataset):
    """A user's own data set: whatever the test hands over."""

    source: Source

    def read(self) -> Source:
        return self.source


def made_up(targets, *, inputs=None, task="classification", class_names=(), test_targets=None, **options) -> MadeUp:
    def column(values):
        return np.arange(2.0 * len(values)).reshape(-1, 2)

    targets = np.asarray(targets)
    test_targets = None if test_targets is None else np.asarray(test_targets)
    test_inputs = None if test_targets is None else column(test_targets)
    inputs = column(targets) if inputs is None else np.asarray(inputs)
    source = Source(inputs, targets, task, class_names, ("height", "width"), test_inputs, test_targets)
    return MadeUp(source=source, **options)


def refused(dataset: Dataset, message: str) -> None:
    with pytest.raises(InfluxError, match=re.escape(message)):
        dataset.load()


# ---- exact sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "name", "n_train", "n_test", "shape", "n_outputs"),
    [
        (Iris(), "iris", 120, 30, (4,), 3),
        (Wine(), "wine", 142, 36, (13,), 3),
        (BreastCancer(), "breast_cancer", 455, 114, (30,), 2),
        (Digits(), "digits", 1437, 360, (1, 8, 8), 10),
        (Diabetes(), "diabetes", 353, 89, (10,), 1),
        (Concrete(), "concrete", 824, 206, (8,), 1),
        (Mnist5k(), "mnist5k", 4000, 1000, (1, 28, 28), 10),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sizes(dataset: Dataset, name: str, n_train: int, n_test: int, shape: tuple[int, ...], n_outputs: int) -> None:
    data = dataset.load()
    assert (data.name, data.n_train, data.n_test, data.input_shape, data.n_outputs) == (name, n_train, n_test, shape, n_outputs)
    assert data.is_image == (len(shape) == 3)
    assert sorted([*data.train_index, *data.test_index]) == list(range(n_train + n_test))
    assert data.train_inputs.dtype == data.test_inputs.dtype == torch.float64
    assert data.train_targets.dtype == (torch.float64 if data.n_classes is None else torch.int64)
    assert len(data.class_names) == (data.n_classes or 0)
    assert len(data.feature_names) == (0 if data.is_image else shape[0])
    if data.is_image:
        assert (data.train_inputs.min(), data.train_inputs.max()) == (0, 1)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_configuration_is_the_constructor(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    module, _, name = config.pop("_target_").rpartition(".")
    fields = {field.name: field.default for field in dataclasses.fields(getattr(importlib.import_module(module), name))}
    assert set(config) == set(fields)
    assert all(config[key] == default for key, default in fields.items() if default is not dataclasses.MISSING)


# ---- the split -------------------------------------------------------------------------------------------------------


def test_default_split_is_scikit_learns_stratified_one() -> None:
    data, labels = Iris(split_seed=3).load(), Iris().read().targets
    train, test = train_test_split(np.arange(150), test_size=0.2, random_state=3, stratify=labels)
    assert np.array_equal(data.train_index, np.sort(train))
    assert np.array_equal(data.test_index, np.sort(test))
    assert torch.bincount(data.test_targets).tolist() == [10, 10, 10]


def test_one_size_leaves_the_other_part_alone() -> None:
    default, fewer = Iris().load(), Iris(train_size=30).load()
    assert np.array_equal(fewer.test_index, default.test_index)
    assert set(fewer.train_index) < set(default.train_index)
    assert torch.bincount(fewer.train_targets).tolist() == [10, 10, 10]
    assert np.array_equal(Iris(test_size=6).load().train_index, default.train_index)
    assert np.array_equal(Iris(test_size=6, train_size=30).load().train_index, fewer.train_index)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"train_size": 140}, (140, 10)),
        ({"test_size": 100}, (50, 100)),
        ({"train_size": 149, "test_size": 1}, (149, 1)),
        ({"train_size": 50, "test_size": 100}, (50, 100)),
    ],
)
def test_sizes_beyond_the_default_rule(options: dict[str, int], sizes: tuple[int, int]) -> None:
    data = Iris(**options).load()
    assert (data.n_train, data.n_test) == sizes
    assert not set(data.train_index) & set(data.test_index)


def test_same_seed_same_bytes_whatever_the_global_state() -> None:
    options = {"train_size": 40, "label_noise": 0.3, "split_seed": 5, "noise_seed": 7}
    digests = []
    for seed in (0, 1):
        np.random.seed(seed)  # noqa: NPY002 - the global state is what must not matter
        torch.manual_seed(seed)
        before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
        digests.append(Iris(**options).load().digest())
        assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
        assert torch.equal(before[1], torch.get_rng_state())
    assert digests[0] == digests[1]
    assert Iris(**options | {"split_seed": 6}).load().digest() != digests[0]


def test_explicit_positions() -> None:
    both = Iris(train_index=[149, 60, 3], test_index=(0,), train_size=100).load()
    assert both.train_index.tolist() == [149, 60, 3]
    assert both.train_targets.tolist() == [2, 1, 0]
    assert both.test_index.tolist() == [0]
    train_only = Iris(train_index=[149, 60, 3]).load()
    assert train_only.n_test == 30
    assert not set(train_only.test_index) & {149, 60, 3}
    assert Iris(train_index=[149, 60, 3], test_size=147).load().n_test == 147
    assert Iris(train_index=list(range(140))).load().n_test == 10
    test_only = Iris(test_index=[5, 4]).load()
    assert (test_only.n_train, test_only.test_index.tolist()) == (148, [5, 4])
    assert Iris(test_index=[5, 4], train_size=20).load().n_train == 20


def test_an_official_test_part_is_used() -> None:
    options = {"test_targets": [0, 1, 1]}
    data = made_up([0, 0, 1, 1, 0, 1], **options).load()
    assert (data.train_index.tolist(), data.test_index.tolist()) == (list(range(6)), [0, 1, 2])
    assert made_up([0, 0, 1, 1, 0, 1], train_index=[2, 0], test_index=[2], **options).load().test_index.tolist() == [2]
    assert made_up([0, 0, 1, 1, 0, 1], train_size=2, **options).load().train_targets.sort().values.tolist() == [0, 1]
    refused(made_up([0, 1], test_size=4, **options), "dataset.test_size=4 is too much: the test part of made_up has 3 example(s)")
    refused(made_up([0, 1], train_size=4, **options), "dataset.train_size=4 is too much: the training part of made_up has 2 example(s)")
    refused(made_up([0, 1], test_index=[3], **options), "the test part of made_up has positions 0 to 2 only")


def test_small_draws_are_not_stratified() -> None:
    assert Digits(test_size=3).load().n_test == 3  # fewer than the classes
    assert made_up([0, 1], test_targets=[0, 1, 1, 1], test_size=2).load().n_test == 2  # a class with one example


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 200}, "dataset.train_size=200 is too much: iris has 150 examples to divide and each part needs at least one"),
        ({"test_size": 150}, "dataset.test_size=150 is too much"),
        ({"train_size": 100, "test_size": 51}, "dataset.train_size=100 and dataset.test_size=51 is too much"),
        ({"train_index": [1], "test_size": 150}, "dataset.test_size=150 is too much: iris has 149 example(s) to draw from"),
        ({"train_index": [0, 150]}, "dataset.train_index holds 150, but iris has positions 0 to 149 only"),
        ({"test_index": [7, 7]}, "dataset.test_index holds 7 more than once"),
        ({"test_index": []}, "dataset.test_index is empty"),
        ({"train_index": [1, 2, 3], "test_index": [3, 4]}, "share 1 position(s), the first 3"),
        ({"train_index": list(range(150))}, "iris has no example left for the test part"),
        ({"train_index": [0, 50], "classes": [1, 2]}, "dataset.train_index holds 0, whose class dataset.classes leaves out"),
        ({"split_seed": 2**32}, "dataset.split_seed=4294967296 is too large: it must be at most 4294967295"),
    ],
)
def test_impossible_splits_are_refused(options: dict, message: str) -> None:
    refused(Iris(**options), message)


def test_constructors_refuse_what_the_command_line_refuses() -> None:
    with pytest.raises(InfluxError, match=r"dataset\.label_noise=2 is not possible"):
        Iris(label_noise=2)
    with pytest.raises(InfluxError, match=r"dataset\.train_index=\[-1\] is not possible"):
        Iris(train_index=[-1])


# ---- standardisation -------------------------------------------------------------------------------------------------


def test_standardised_by_the_training_part() -> None:
    data, source = Concrete().load(), Concrete().read()
    assert torch.allclose(data.train_inputs.mean(0), torch.zeros(8).double(), atol=1e-12)
    assert torch.allclose(data.train_inputs.std(0, correction=0), torch.ones(8).double())
    assert abs(data.train_targets.mean()) < 1e-12
    assert data.train_targets.std(correction=0) == pytest.approx(1)
    original = data.test_inputs.numpy() * data.input_scale + data.input_offset
    assert np.allclose(original, source.inputs[data.test_index])
    assert np.allclose(data.test_targets.numpy() * data.target_scale + data.target_offset, source.targets[data.test_index])


def test_standardize_false_leaves_everything_alone() -> None:
    data, source = Diabetes(standardize=False).load(), Diabetes().read()
    assert np.array_equal(data.train_inputs.numpy(), source.inputs[data.train_index])
    assert np.array_equal(data.test_targets.numpy(), source.targets[data.test_index])
    assert (data.input_offset, data.input_scale, data.target_offset, data.target_scale) == (0, 1, 0, 1)


def test_a_constant_feature_is_only_centred() -> None:
    data = made_up([0, 1] * 5, inputs=[[0.1, float(row)] for row in range(10)]).load()
    assert (data.input_offset[0], data.input_scale[0]) == (0.1, 1)
    assert torch.all(data.train_inputs[:, 0] == 0)


# ---- classes and label noise -----------------------------------------------------------------------------------------


def test_classes_are_relabelled_in_the_given_order() -> None:
    data, labels = Digits(classes=[3, 1], train_size=100).load(), Digits().read().targets
    assert (data.n_classes, data.class_names) == (2, ("3", "1"))
    assert np.array_equal(np.array([3, 1])[data.train_targets], labels[data.train_index])
    assert np.array_equal(np.array([3, 1])[data.test_targets], labels[data.test_index])
    assert data.n_test == 73  # a fifth of 183 + 182, rounded up


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.37, 1.0])
def test_label_noise_is_exact_and_recorded(fraction: float) -> None:
    clean, noisy = Iris().load(), Iris(label_noise=fraction).load()
    changed = (clean.train_targets != noisy.train_targets).numpy()
    assert changed.sum() == round(fraction * 120)
    assert np.array_equal(noisy.flipped, clean.train_index[changed])
    assert set(noisy.train_targets.tolist()) <= {0, 1, 2}
    assert torch.equal(clean.test_targets, noisy.test_targets)


def test_label_noise_reaches_every_other_class_and_follows_its_seed() -> None:
    clean, noisy = Digits().load(), Digits(label_noise=0.5).load()
    steps = (noisy.train_targets - clean.train_targets)[np.isin(clean.train_index, noisy.flipped)] % 10
    assert sorted(set(steps.tolist())) == list(range(1, 10))
    assert not np.array_equal(noisy.flipped, Digits(label_noise=0.5, noise_seed=1).load().flipped)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Iris(classes=[0, 7]), "dataset.classes holds 7, which iris does not have; its classes are 0 (setosa), 1 (versicolor)"),
        (Iris(classes=[1]), "dataset.classes=[1] leaves 1 class(es): keep at least 2"),
        (Iris(classes=[1, 1]), "names a class twice"),
        (Diabetes(classes=[0, 1]), "dataset.classes does not apply to diabetes, a regression set"),
        (Diabetes(label_noise=0.1), "dataset.label_noise does not apply to diabetes, a regression set"),
        (Digits(train_size=5), "the training part of digits (5 examples) has no example of class"),
        (Iris(train_index=[0, 149]), "has no example of class 1 (versicolor): raise dataset.train_size"),
    ],
)
def test_impossible_classes_are_refused(dataset: Dataset, message: str) -> None:
    refused(dataset, message)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (made_up([0, 1, -1, 1]), "made_up has the label -1 in row 2 (counting from 0): labels must be whole numbers"),
        (made_up([0, 1, 0.5, 1]), "made_up has the label 0.5 in row 2"),
        (made_up([0, 0, 2, 2]), "made_up has the label 2 but no example of class 1"),
        (made_up([1, 1, 2, 2]), "made_up has the label 2 but no example of class 0"),
        (made_up([0, 0, 10**15, 1]), "made_up has the label 1e+15 but no example of class 2"),
        (made_up([0, 0, 1, 2], class_names=("a", "b")), "made_up has the label 2 in row 3 (counting from 0) but 2 class name(s)"),
        (made_up([0, 0, 2, 2], class_names=("a", "b", "c")), "made_up has no example of class 1 (b)"),
        (made_up([0, 0, 1]), "made_up has a single example of class 1 (1): each class needs at least 2"),
        (made_up([0, 0, 0]), "made_up has 1 class(es): classification needs at least 2"),
        (made_up([0, 1], test_targets=[0, 2]), "the test part of made_up has the label 2"),
        (made_up([0.0, np.nan, np.nan], task="regression"), "made_up has 2 NaN or infinite value(s) in its targets, the first in row 1"),
        (made_up([0, 1], inputs=[[0, 1], [np.inf, 1]]), "made_up has 1 NaN or infinite value(s) in its inputs, the first in row 1"),
        (made_up([0, 1], inputs=[[0, np.nan], [1, 1]]), "column width: remove or fill in such rows"),
        (made_up([0, 1], inputs=np.full((2, 1, 2, 2), np.nan)), "column 0, 0, 0"),
        (made_up(["a", "b"]), "made_up has targets of type <U1: they must be numbers"),
        (made_up([0, 1], inputs=[[1.0, 2.0]]), "made_up has inputs of shape (1, 2) and targets of shape (2,)"),
        (made_up([0, 1], task="ranking"), "made_up has the task 'ranking': it must be one of classification, regression"),
        (made_up([3.5], task="regression"), "made_up has 1 example(s) to divide: at least 2 are needed"),
    ],
)
def test_broken_numbers_are_refused(dataset: Dataset, message: str) -> None:
    refused(dataset, message)


# ---- Data ------------------------------------------------------------------------------------------------------------


def test_to_casts_floating_point_only() -> None:
    data = Concrete().load().to(torch.float32, "cpu")
    assert data.train_inputs.dtype == data.test_targets.dtype == torch.float32
    assert Iris().load().to(torch.float32, torch.device("cpu")).train_targets.dtype == torch.int64


def test_whole_numbers_become_float64() -> None:
    data = made_up([1, 2, 4, 8], inputs=[[1], [2], [3], [4]], task="regression", standardize=False).load()
    assert data.train_inputs.dtype == data.train_targets.dtype == torch.float64


def test_digest_changes_with_any_number() -> None:
    data = Iris(label_noise=0.1).load()
    digests = {data.digest()}
    for field in dataclasses.fields(Data):
        value = getattr(data, field.name)
        if isinstance(value, torch.Tensor | np.ndarray):
            digests.add(dataclasses.replace(data, **{field.name: _nudged(value)}).digest())
        elif isinstance(value, float):
            digests.add(dataclasses.replace(data, **{field.name: value + 1e-15}).digest())
    assert len(digests) == 1 + 9 + 2
    assert Iris(label_noise=0.1).load().digest() in digests
    assert re.fullmatch("[0-9a-f]{64}", data.digest())


def _nudged(values):
    nudged = values.clone() if isinstance(values, torch.Tensor) else values.copy()
    nudged.reshape(-1)[-1] += 1
    return nudged


# ---- MNIST, Fashion-MNIST --------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def idx_files(n_train: int = 20, n_test: int = 10) -> dict[str, bytes]:
    files = {}
    for part, n in (("train", n_train), ("t10k", n_test)):
        labels = np.arange(n) % 10
        images = np.zeros((n, 28, 28)) + labels[:, None, None]
        images[:, 0, 27] = 255
        files |= {f"{part}-images-idx3-ubyte": idx(images), f"{part}-labels-idx1-ubyte": idx(labels)}
    return files


def write(folder: Path, files: dict[str, bytes], packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return folder


def check_idx_set(data: Data) -> None:
    assert (data.n_train, data.n_test, data.input_shape, data.n_classes) == (20, 10, (1, 28, 28), 10)
    assert data.train_inputs.dtype == torch.float64
    assert data.train_targets.tolist() == [*range(10), *range(10)]
    assert data.test_inputs[3, 0, 0, 26:].tolist() == [3 / 255, 1]


@pytest.mark.parametrize(("kind", "folder"), [(Mnist, "MNIST"), (FashionMnist, "FashionMNIST")])
def test_idx_files_are_read(kind: type[Mnist], folder: str, tmp_path: Path) -> None:
    write(tmp_path / folder / "raw", idx_files())
    check_idx_set(kind(root=str(tmp_path)).load())
    assert kind(root=str(tmp_path), test_size=5, train_size=10).load().n_test == 5


@pytest.mark.parametrize("place", ["", "FashionMNIST/raw"])
def test_packed_idx_files_are_unpacked(place: str, tmp_path: Path) -> None:
    write(tmp_path / place, idx_files(), packed=True)
    check_idx_set(FashionMnist(root=str(tmp_path)).load())
    raw = tmp_path / "FashionMNIST" / "raw"
    assert sorted(path.name for path in raw.iterdir() if path.suffix != ".gz") == sorted(idx_files())
    assert torchvision().datasets.FashionMNIST(tmp_path).data.shape == (20, 28, 28)  # the layout is torchvision's own


def test_fashion_mnist_is_looked_for_where_debian_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("influx.datasets.fashion_mnist.DEBIAN", str(tmp_path / "debian"))
    refused(FashionMnist(), f"fashion_mnist is not in {tmp_path / 'data'}")
    write(tmp_path / "debian", idx_files(), packed=True)
    check_idx_set(FashionMnist().load())
    write(tmp_path / "data" / "FashionMNIST" / "raw", idx_files(n_train=30))
    assert FashionMnist().load().n_train == 30  # one's own files come first


def test_a_read_only_root_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, idx_files(), packed=True)
    monkeypatch.setattr("influx.datasets._files.os.access", lambda *_: False)
    check_idx_set(FashionMnist(root=str(tmp_path)).load())
    assert not (tmp_path / "FashionMNIST").exists()


def test_missing_files_say_where_and_what_to_do(tmp_path: Path) -> None:
    for dataset in (Mnist(root=str(tmp_path)), FashionMnist(root=str(tmp_path)), Cifar10(root=str(tmp_path))):
        refused(dataset, f"{dataset.name} is not in {tmp_path}")
        refused(dataset, "set dataset.download=true to fetch it, or dataset.root to the folder that has it; dataset=mnist5k")
    files = idx_files()
    del files["t10k-labels-idx1-ubyte"]
    write(tmp_path / "MNIST" / "raw", files)
    refused(Mnist(root=str(tmp_path)), "(t10k-labels-idx1-ubyte not found)")


BREAKERS = {
    "empty": lambda content: b"",
    "short": lambda content: content[:-1],
    "long": lambda content: content + b"0",
    "magic": lambda content: b"\x00\x00\x07" + content[3:],
    "other": lambda content: b"<html>",
}


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("broken", BREAKERS.values(), ids=BREAKERS)
def test_corrupt_idx_files_are_named(name: str, broken, tmp_path: Path) -> None:
    files = idx_files()
    raw = write(tmp_path / "MNIST" / "raw", files | {name: broken(files[name])})
    refused(Mnist(root=str(tmp_path)), f"{raw / name} is corrupt (wrong magic number or length")


def test_corrupt_archives_and_uneven_files_are_named(tmp_path: Path) -> None:
    raw = write(tmp_path / "MNIST" / "raw", idx_files(), packed=True)
    archive = raw / "train-images-idx3-ubyte.gz"
    for content in (archive.read_bytes()[:40], b"<html>"):
        archive.write_bytes(content)
        refused(Mnist(root=str(tmp_path)), f"{archive} is corrupt")
        assert not list(raw.glob("*.partial"))
    write(raw, idx_files(), packed=True)
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(10)))
    refused(Mnist(root=str(tmp_path)), "it has 10 labels for the 20 images in train-images-idx3-ubyte")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a local mirror that serves `tmp_path/served`."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served")) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()


def test_download(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = write(tmp_path / "served", idx_files(), packed=True)
    reader = torchvision().datasets.MNIST
    monkeypatch.setattr(reader, "resources", [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in served.iterdir()])
    monkeypatch.setattr(reader, "mirrors", [f"{server}nowhere/"])
    refused(Mnist(root=str(tmp_path / "data"), download=True), "mnist could not be downloaded (Error downloading")
    monkeypatch.setattr(reader, "mirrors", [server])
    check_idx_set(Mnist(root=str(tmp_path / "data"), download=True).load())
    check_idx_set(Mnist(root=str(tmp_path / "data")).load())


# ---- CIFAR-10 --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cifar_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten images a batch in CIFAR-10's own format, and torchvision's list of checksums made to match."""
    reader = torchvision().datasets.CIFAR10
    pixels = np.repeat(np.arange(10, dtype=np.uint8)[:, None], 3072, axis=1)
    pixels[:, 1024:2048] += 100  # green
    pixels[:, 32:64] += 50  # the second row of red
    batch = pickle.dumps({"data": pixels, "labels": list(range(10))})
    meta = pickle.dumps({"label_names": [f"kind {number}" for number in range(10)]})
    files = {name: batch for name, _ in [*reader.train_list, *reader.test_list]} | {"batches.meta": meta}
    write(tmp_path / reader.base_folder, files)
    checksums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(reader, "train_list", [[name, checksums[name]] for name, _ in reader.train_list])
    monkeypatch.setattr(reader, "test_list", [[name, checksums[name]] for name, _ in reader.test_list])
    monkeypatch.setattr(reader, "meta", reader.meta | {"md5": checksums["batches.meta"]})
    monkeypatch.setattr(reader, "url", (tmp_path / "nowhere.tar.gz").as_uri())
    return tmp_path


def test_cifar10_is_read(cifar_root: Path) -> None:
    data = Cifar10(root=str(cifar_root)).load()
    assert (data.n_train, data.n_test, data.input_shape, data.class_names[9]) == (50, 10, (3, 32, 32), "kind 9")
    assert data.test_inputs[7, :, 31, 0].tolist() == [7 / 255, 107 / 255, 7 / 255]
    assert data.test_inputs[7, 0, :3, 31].tolist() == [7 / 255, 57 / 255, 7 / 255]
    assert Cifar10(root=str(cifar_root), download=True).load().digest() == data.digest()


def test_cifar10_refuses_other_files(cifar_root: Path) -> None:
    batch = cifar_root / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1])
    refused(Cifar10(root=str(cifar_root)), f"{batch} is corrupt (its checksum is not the published one)")
    refused(Cifar10(root=str(cifar_root), download=True), "cifar10 could not be downloaded")
    batch.unlink()
    refused(Cifar10(root=str(cifar_root)), "(cifar-10-batches-py/data_batch_3 not found)")


# ---- a table of the user's own ---------------------------------------------------------------------------------------


def table(folder: Path, text: str | bytes, **options) -> CsvFile:
    path = folder / "data.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return CsvFile(path=str(path), **{"target": "y", "standardize": False, **options})


def test_csv_text_labels(tmp_path: Path) -> None:
    data = table(tmp_path, "age, y, open\n" + "1.5, dog, 1\n2,NA ,0\n" * 5).load()
    assert (data.class_names, data.feature_names, data.n_train, data.n_test) == (("NA", "dog"), ("age", "open"), 8, 2)
    rows = dict(zip(data.train_index.tolist(), zip(data.train_targets.tolist(), data.train_inputs.tolist(), strict=True), strict=True))
    assert all(row == ((0, [2.0, 0.0]) if position % 2 else (1, [1.5, 1.0])) for position, row in rows.items())


def test_csv_whole_number_labels_and_regression(tmp_path: Path) -> None:
    text = "x,y\n" + "".join(f"{row},{row % 2}.0\n" for row in range(10))
    assert table(tmp_path, text).load().class_names == ("0", "1")
    data = table(tmp_path, text, task="regression", standardize=True).load()
    assert (data.n_classes, data.n_outputs, data.n_train) == (None, 1, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "data.csv is empty: a header and at least one row are needed"),
        ("x,y\n", "data.csv is empty: it has a header but no row"),
        ("x,yy\n1,2\n", "has no column dataset.target=y; its columns are x, yy. Did you mean 'yy'?"),
        ("y\n1\n", "has no column beside the target y"),
        (",x,y\n0,1,2\n", "has no name for column 1: name it, or delete it if it only numbers the rows"),
        ("x,y\n1,2,3\n", "has rows with more fields than its header has names"),
        ("x,y\n1,2\n1,2,3\n", "cannot be read as comma-separated UTF-8 text (Error tokenizing data"),
        ('x,y\n1,"2\n', "cannot be read as comma-separated UTF-8 text"),
        (b"x,y\n\xff\xfe,1\n", "cannot be read as comma-separated UTF-8 text ('utf-8' codec"),
        ("x,y\n1,0\nred,1\n", "has the feature column x that is not numeric ('red' in row 1, counting from 0)"),
        ("x,y\n1,0\n,1\n", "1 NaN or infinite value(s) in its inputs, the first in row 1 (counting from 0), column x"),
        ("x,y\n1,0\nn/a,1\n", "the first in row 1 (counting from 0), column x"),
        ("x,y,z\n1,0,1\n2,0\n", "the first in row 1 (counting from 0), column z"),
        ("x,z,y\n1,1,0\n2,True,0\n", "has the feature column z that is not numeric ('True' in row 1"),
        ("x,y\n1,\n2,1\n", "has no y in row 0 (counting from 0)"),
        ("x,y\n1,-1\n2,1\n", "has the label -1 in row 0"),
        ("x,y\n1,0\n2,1.5\n", "has the label 1.5 in row 1"),
        ("x,y\n1,1\n2,2\n", "has the label 2 but no example of class 0"),
        ("x,y\n1,0\n2,NA\n", "has the target 'NA' in row 1 (counting from 0), which is not a number while others are"),
        ("x,y\n1,a\n2,b\n3,b\n", "has a single example of class 0 (a): each class needs at least 2"),
        ("x,y\n1,a\n2,b\n3,c\n", "has a single example of class 0 (a) (and 2 other classes)"),
        ("x,y\n1,a\n2,a\n", "has 1 class(es): classification needs at least 2"),
    ],
)
def test_csv_refusals(text: str | bytes, message: str, tmp_path: Path) -> None:
    refused(table(tmp_path, text), message)


def test_csv_refusals_of_regression_and_paths(tmp_path: Path) -> None:
    dataset = table(tmp_path, "x,y\n1,high\n2,3\n", task="regression")
    refused(dataset, "has the target 'high' in row 0 (counting from 0), which is not a number: correct it, or set dataset.task=classif")
    refused(table(tmp_path, "x,y\n1,inf\n2,3\n", task="regression"), "1 NaN or infinite value(s) in its targets, the first in row 0")
    refused(CsvFile(path="nowhere.csv", target="y"), "dataset.path=nowhere.csv is not a file (looked for /")
    refused(CsvFile(path=str(tmp_path), target="y"), "is not a file")
    with pytest.raises(InfluxError, match=r"dataset\.task=ranking is not possible"):
        CsvFile(path="data.csv", target="y", task="ranking")


# ---- the door to torchvision -----------------------------------------------------------------------------------------

SHIM = """
import sys
from influx.vision import torchvision
assert "torchvision" not in sys.modules
vision = torchvision()
assert torchvision() is vision
import torch
assert vision.models.resnet18(weights=None).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
assert vision.datasets.MNIST and vision.transforms.ToTensor
"""


def test_vision_in_a_fresh_process() -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", SHIM], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
