"""The store: an entry is there whole or not at all, damage is noticed, and no two different results share a key."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import lock_descriptor
from safetensors import safe_open
from safetensors.torch import save_file

from influx.datasets.diabetes import Diabetes
from influx.datasets.iris import Iris
from influx.errors import AccuracyWarning, InfluxError
from influx.experiment import Experiment, Trained
from influx.instantiate import describe
from influx.measurements import Loss, Margin
from influx.models.logistic import Logistic
from influx.models.mlp import Mlp
from influx.objectives import CrossEntropy, Supervised
from influx.removals import Removals
from influx.retraining import Retraining
from influx.shards import Draw, Shard
from influx.store import STALE, Store, digest, header, is_sound, write_whole
from influx.training.first_order import Adam, AdamW, Sgd
from influx.training.second_order import Lbfgs, Newton

KEY = {"seed": 0, "model": {"class": "Mlp", "width": 3}, "rows": [1, 2]}
TENSORS = {"a": torch.arange(6.0, dtype=torch.float64).reshape(2, 3), "b/c": torch.tensor([1, 2])}


def entry(store: Store) -> Path:
    path = store.path("model", KEY)
    assert path is not None
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one entry."""
    store = Store(tmp_path / "store")
    store.save("model", KEY, TENSORS)
    return store


# ---------------------------------------------------------------------------------------------------------- save and load


def test_what_was_saved_is_loaded(store: Store) -> None:
    loaded = store.load("model", dict(reversed(KEY.items())))  # the order of a key does not matter
    assert loaded is not None
    assert set(loaded) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype


def test_saving_leaves_the_entry_and_nothing_else(store: Store) -> None:
    assert [file for file in store.root.rglob("*") if file.is_file()] == [entry(store)]
    assert entry(store).stem == digest(KEY)
    assert entry(store).stat().st_mode & 0o777 == 0o644


def test_an_entry_names_its_key(store: Store) -> None:
    with safe_open(entry(store), framework="pt") as file:
        assert json.loads(file.metadata()["key"]) == KEY


def test_an_entry_says_what_it_is_for_and_that_is_no_part_of_its_key(store: Store) -> None:
    store.save("model", KEY, TENSORS, about="digits, Mlp,\n  seed 3")
    content = entry(store).read_bytes()
    assert header(content)["about"] == "digits, Mlp, seed 3"
    assert is_sound(content, digest(KEY))


def test_tensors_that_share_memory_are_saved_each_by_itself(store: Store) -> None:
    tied = torch.arange(4.0)
    store.save("model", KEY, {"first": tied, "second": tied, "part": tied[1:3]})
    loaded = store.load("model", KEY)
    assert loaded is not None
    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {"first": [0, 1, 2, 3], "second": [0, 1, 2, 3], "part": [1, 2]}


@pytest.mark.parametrize("tensor", [torch.zeros(0, 3), torch.tensor(2.0), torch.ones(3, dtype=torch.bfloat16), torch.tensor([True])])
def test_every_shape_and_type_comes_back(store: Store, tensor: torch.Tensor) -> None:
    store.save("model", KEY, {"it": tensor})
    loaded = store.load("model", KEY)
    assert loaded is not None
    assert torch.equal(loaded["it"], tensor)
    assert loaded["it"].dtype == tensor.dtype


def test_saving_again_replaces(store: Store) -> None:
    store.save("model", KEY, {"a": torch.zeros(1)})
    loaded = store.load("model", KEY)
    assert loaded is not None
    assert set(loaded) == {"a"}


def test_a_slice_and_a_gradient_are_saved_by_value(store: Store) -> None:
    tensor = torch.arange(12.0).reshape(3, 4).requires_grad_(True)[:, 1]
    store.save("model", KEY, {"column": tensor})
    loaded = store.load("model", KEY)
    assert loaded is not None
    assert loaded["column"].tolist() == [1.0, 5.0, 9.0]


@pytest.mark.parametrize(("kind", "key"), [("retrained", KEY), ("model", {**KEY, "seed": 1}), ("model", {})])
def test_what_was_not_saved_is_not_there(store: Store, kind: str, key: dict[str, Any]) -> None:
    assert store.load(kind, key) is None


def test_a_store_without_a_place_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(None)
    store.check()
    store.save("model", KEY, TENSORS)
    assert store.load("model", KEY) is None
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------------- damage


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: flip(content, len(content) - 1),  # a number
        lambda content: flip(content, len(content) - 30),
        lambda content: flip(content, 20),  # the header
        lambda content: flip(content, 0),  # the header's length
        lambda content: content[:-1],
        lambda content: content[:5],
        lambda content: b"",
    ],
    ids=["last byte", "a byte", "header", "length", "one byte short", "five bytes left", "empty"],
)
def test_a_damaged_entry_is_reported_removed_and_counts_as_none(store: Store, damage: Callable[[bytes], bytes]) -> None:
    entry(store).write_bytes(damage(entry(store).read_bytes()))
    with pytest.warns(AccuracyWarning, match=r"the stored model .*\.safetensors is damaged; it is removed and computed again"):
        assert store.load("model", KEY) is None
    assert not entry(store).exists()
    store.save("model", KEY, TENSORS)
    assert store.load("model", KEY) is not None


def test_no_flipped_bit_and_no_lost_byte_goes_unnoticed(store: Store) -> None:
    """Every bit of the file, and every length."""
    content, name = entry(store).read_bytes(), digest(KEY)
    assert is_sound(content, name)
    flipped = (content[:i] + bytes([content[i] ^ (1 << bit)]) + content[i + 1 :] for i in range(len(content)) for bit in range(8))
    assert not any(is_sound(damaged, name) for damaged in flipped)
    assert not any(is_sound(content[:length], name) for length in range(len(content)))
    assert not is_sound(content + b"\0", name)


def test_an_entry_under_another_keys_name_is_damaged(store: Store) -> None:
    other = store.path("model", {**KEY, "seed": 1})
    assert other is not None
    other.parent.mkdir(exist_ok=True)
    shutil.copy(entry(store), other)
    with pytest.warns(AccuracyWarning, match="damaged"):
        assert store.load("model", {**KEY, "seed": 1}) is None


@pytest.mark.parametrize("content", [[], ["a file"]], ids=["empty", "with a file"])
def test_a_folder_in_an_entrys_place_is_damage(store: Store, content: list[str]) -> None:
    entry(store).unlink()
    entry(store).mkdir()
    for name in content:
        (entry(store) / name).touch()
    with pytest.warns(AccuracyWarning, match=r"the stored model .*\.safetensors is damaged; it is removed and computed again"):
        assert store.load("model", KEY) is None
    store.save("model", KEY, TENSORS)
    assert store.load("model", KEY) is not None


@pytest.mark.parametrize("metadata", [None, {"checksum": "0" * 64}], ids=["no checksum", "another checksum"])
def test_a_file_that_the_store_did_not_write_is_damaged(store: Store, metadata: dict[str, str] | None) -> None:
    save_file(TENSORS, entry(store), metadata)
    with pytest.warns(AccuracyWarning, match="damaged"):
        assert store.load("model", KEY) is None


# ------------------------------------------------------------------------------------------------------------- permissions


@pytest.fixture
def guarded() -> Iterator[Store]:
    """A store with one entry, in a folder that all may pass; the test runs as a user whom permissions bind."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    store = Store(folder / "store")
    store.save("model", KEY, TENSORS)
    root = os.geteuid() == 0
    if root:
        for place in (folder, *folder.rglob("*")):
            os.chown(place, 65534, 65534)
        os.seteuid(65534)
    yield store
    if root:
        os.seteuid(0)
    subprocess.run(["chmod", "-R", "u+rwx", folder], check=True)
    shutil.rmtree(folder)


def test_an_entry_that_may_not_be_read_is_left_there_and_replaced(guarded: Store) -> None:
    entry(guarded).chmod(0)
    with pytest.warns(
        AccuracyWarning, match=r"the stored model .*\.safetensors cannot be read \(Permission denied\); it is computed again"
    ):
        assert guarded.load("model", KEY) is None
    assert entry(guarded).exists()
    guarded.save("model", KEY, TENSORS)
    assert guarded.load("model", KEY) is not None


def test_a_store_that_can_only_be_read_is_read_and_takes_no_claim(guarded: Store) -> None:
    for place in (guarded.root, *guarded.root.rglob("*")):
        place.chmod(0o555 if place.is_dir() else 0o444)
    guarded.check()
    assert guarded.load("model", KEY) is not None
    with pytest.raises(InfluxError, match=r"store\.dir=.* cannot be written \(Permission denied\): choose another place, or null"):
        guarded.claim("model", KEY)
    with pytest.raises(InfluxError, match=r"cannot write .*\(Permission denied\)"):
        guarded.save("model", KEY, TENSORS)


def test_damage_that_may_not_be_removed_is_reported_as_such(guarded: Store) -> None:
    entry(guarded).write_bytes(b"")
    entry(guarded).parent.chmod(0o555)
    with pytest.warns(AccuracyWarning, match=r"the stored model .* is damaged and cannot be removed; it is computed again"):
        assert guarded.load("model", KEY) is None


# ----------------------------------------------------------------------------------------------------------------- writing


def test_a_failed_write_is_an_error_and_leaves_the_old_entry(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InfluxError, match=r"cannot write .*\(No space left on device\): choose another place .*store.dir"):
        store.save("model", KEY, {"a": torch.zeros(1)})
    monkeypatch.undo()
    assert [file for file in store.root.rglob("*") if file.is_file()] == [entry(store)]
    loaded = store.load("model", KEY)
    assert loaded is not None
    assert set(loaded) == set(TENSORS)


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from influx.errors import InfluxError
from influx.store import Store

store, key = Store(Path(sys.argv[1])), {"seed": 0}
store.save("model", key, {"a": torch.ones(100)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for name in (key, {"seed": 1}):
    try:
        store.save("model", name, {"a": torch.zeros(100_000)})
    except InfluxError as error:
        print(error)
print(store.load("model", key)["a"].sum().item(), store.load("model", {"seed": 1}))
"""


def test_a_full_disk_is_said_and_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True)
    first, second, after = done.stdout.splitlines()
    for line in (first, second):
        assert re.fullmatch(r"cannot write .*\(File too large\): choose another place .*store\.dir=\.\.\., or free some space\.", line)
    assert after == "100.0 None"
    assert [file.suffix for file in tmp_path.rglob("*") if file.is_file()] == [".safetensors"]


def test_ctrl_c_in_the_middle_of_writing_leaves_no_temporary_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save("model", KEY, TENSORS)
    assert [file for file in store.root.rglob("*") if file.is_file()] == [entry(store)]


def test_a_failed_rename_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(InfluxError, match="cannot write"):
        write_whole(tmp_path / "taken", b"content")
    assert [place.name for place in tmp_path.iterdir()] == ["taken"]


def test_a_place_below_a_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InfluxError, match=r"store\.dir=.*file/store cannot be written \(Not a directory\): choose another place, or null"):
        Store(tmp_path / "file" / "store").check()


def left_over(folder: Path, name: str, age: float) -> Path:
    """A file as a killed process leaves it, `age` seconds old."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.mark.parametrize(("folder", "name"), [("model/3f", ".writing-abc"), ("locks", "model-3f.lock")])
def test_a_check_sweeps_away_what_killed_processes_left(store: Store, folder: str, name: str) -> None:
    old, young = left_over(store.root / folder, name, 2 * STALE), left_over(store.root / folder, f"{name}2.lock", STALE / 2)
    held = left_over(store.root / folder, f"{name}3.lock", 2 * STALE)
    handle = os.open(held, os.O_RDWR)
    lock_descriptor(handle)
    store.check()
    assert (old.exists(), young.exists(), held.exists()) == (False, True, True)
    os.close(handle)
    store.check()
    assert not held.exists()
    assert entry(store).exists()


def _save_slowly(store: Store, begun: Any, go_on: Any) -> None:
    plain = os.fsync

    def slow(handle: int) -> None:
        begun.set()
        go_on.wait(20)
        plain(handle)

    os.fsync = slow
    store.save("model", {**KEY, "seed": 1}, TENSORS)


def test_a_file_that_a_living_process_writes_is_never_swept_away(store: Store) -> None:
    """Not even when the process was stopped for long in the middle of it."""
    fork = multiprocessing.get_context("fork")
    begun, go_on = fork.Event(), fork.Event()
    writer = fork.Process(target=_save_slowly, args=(store, begun, go_on))
    writer.start()
    assert begun.wait(20)
    (temporary,) = store.root.rglob(".writing-*")
    os.utime(temporary, (0, 0))
    store.check()
    assert temporary.exists()
    go_on.set()
    writer.join()
    assert store.load("model", {**KEY, "seed": 1}) is not None


def _save_often(root: Path, value: float, barrier: Any) -> None:
    barrier.wait()
    for _ in range(20):
        Store(root).save("model", KEY, {"a": torch.full((5000,), value)})


def test_processes_that_save_one_key_together_leave_one_whole_entry(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    barrier, values = fork.Barrier(2), (1.0, 2.0)
    writers = [fork.Process(target=_save_often, args=(tmp_path, value, barrier)) for value in values]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    loaded = Store(tmp_path).load("model", KEY)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert loaded is not None
    assert set(loaded["a"].tolist()) in ({1.0}, {2.0})
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == 1


# ------------------------------------------------------------------------------------------------------------------- keys


def experiment(**changes: Any) -> Experiment:
    parts = {
        "data": Iris(train_size=20, test_size=5).load(),
        "model": Mlp(width=3),
        "training": Sgd(),
        "objective": Supervised(),
        "measurement": Loss(),
    } | changes
    return Experiment(**parts)


DATA = [
    {"split_seed": 1}, {"train_size": 21}, {"standardize": False}, {"label_noise": 0.1}, {"label_noise": 0.1, "noise_seed": 1},
    {"classes": (0, 1)}, {"classes": (1, 0)}, {"train_index": (0, 60, 120)},
]  # fmt: skip
WORDS = {"activation": "relu", "schedule": "cosine"}


def other(name: str, value: Any) -> Any:
    """Another value that the knob accepts."""
    if name in WORDS:
        return WORDS[name] if value != WORDS[name] else "tanh"
    if isinstance(value, bool):
        return not value
    if name == "batch_size":
        return None
    return value + 1 if isinstance(value, int) else value * 0.5 if value else 0.5


def variants() -> dict[str, str]:
    """The digest of the model's key for one experiment and for every change of one of its fields."""
    base = experiment()
    found = {"base": digest(base.key(0)), "seed": digest(base.key(1))}
    for number, change in enumerate(DATA):
        data = Iris(**{"train_size": 20, "test_size": 5, **change}).load()
        found[f"data {number} {change}"] = digest(replace(base, data=data).key(0))
    found["data set"] = digest(replace(base, data=Diabetes(train_size=20, test_size=5).load()).key(0))
    found["float32"] = digest(replace(base, data=base.data.to(torch.float32, "cpu")).key(0))
    found["objective"] = digest(replace(base, objective=CrossEntropy()).key(0))
    found["logistic"] = digest(replace(base, model=Logistic()).key(0))
    for training in (Sgd(), Adam(), AdamW(), Newton(), Lbfgs()):
        kind = type(training).__name__
        found |= {kind: digest(replace(base, training=training).key(0))} if kind != "Sgd" else {}
        for field in dataclasses.fields(training):
            changed = replace(training, **{field.name: other(field.name, getattr(training, field.name))})
            found[f"{kind}.{field.name}"] = digest(replace(base, training=changed).key(0))
    for field in dataclasses.fields(Mlp):
        changed_model = replace(base.model, **{field.name: other(field.name, getattr(base.model, field.name))})
        found[f"model.{field.name}"] = digest(replace(base, model=changed_model).key(0))
    return found


def test_a_key_changes_with_every_field_of_an_experiment() -> None:
    found = variants()
    assert len(found) > 40
    assert {name: other for name in found for other in found if name < other and found[name] == found[other]} == {}


def test_a_key_does_not_change_with_what_does_not_determine_the_model() -> None:
    assert experiment().key(0) == experiment().key(0) == experiment(measurement=Margin()).key(0)
    assert experiment().key(0) == experiment(data=Iris(train_size=20, test_size=6).load()).key(0)


def key_of(subject: Experiment, rows: Any, seed: int, **options: Any) -> dict[str, object]:
    nothing_trained = Trained({}, {}, 0.0, [], 0.0)
    return Shard(Retraining(**options).recipe, subject, Removals.single(rows), Draw(seed, seed), nothing_trained, True).key


SHARD = [
    {}, {"start": "warm"}, {"start": "warm", "trainable": "last_layer"}, {"epochs": 3}, {"divisor": "n-1"},
]  # fmt: skip


def test_a_retrained_stacks_key_changes_with_what_determines_it() -> None:
    base = experiment()
    rows = torch.arange(3).numpy()
    found = [digest(key_of(base, rows, 0, **options)) for options in SHARD]
    found += [
        digest(key_of(base, rows, 1)),
        digest(key_of(base, rows[:2], 0)),
        digest(key_of(base, rows + 1, 0)),
        digest(key_of(replace(base, data=Iris(train_size=20, test_size=6).load()), rows, 0)),
        digest(key_of(replace(base, measurement=Margin()), rows, 0)),
        digest(key_of(replace(base, measurement=Scaled(1.0)), rows, 0)),
        digest(key_of(replace(base, measurement=Scaled(2.0)), rows, 0)),
        digest(base.key(0)),
    ]
    assert len(set(found)) == len(found)


IRRELEVANT = [{"workers": 2}, {"models_at_once": 3}, {"seeds": 9}, {"removed": 3}, {"start": "warm", "subtract_drift": True}]


@pytest.mark.parametrize("options", IRRELEVANT)
def test_a_retrained_stacks_key_does_not_change_with_the_rest(options: dict[str, Any]) -> None:
    rows = torch.arange(3).numpy()
    same = Retraining(start=options.get("start", "scratch"))
    assert key_of(experiment(), rows, 0, **options) == key_of(experiment(), rows, 0, start=same.start)


@dataclass(frozen=True)
class Scaled(Loss):
    factor: float = 1.0


@dataclass(frozen=True)
class Holder:
    inner: Mlp
    name: str = "x"


def test_an_edit_of_the_engine_changes_every_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from influx import experiment

    shutil.copytree(Path(experiment.__file__).parent, tmp_path / "influx", ignore=shutil.ignore_patterns("__pycache__", "conf"))
    monkeypatch.setattr(experiment, "__file__", str(tmp_path / "influx/experiment.py"))
    untouched = experiment.engine_digest.__wrapped__()
    assert untouched == experiment.engine_digest()
    for edited in ("training/first_order.py", "objectives.py", "models/mlp.py"):
        with (tmp_path / "influx" / edited).open("a") as file:
            file.write("# edited\n")
        assert (untouched := experiment.engine_digest.__wrapped__()) != experiment.engine_digest(), edited


def test_a_description_goes_into_nested_objects_and_keeps_the_source_of_a_users_class() -> None:
    inner = describe(Holder(Mlp(depth=1, width=3, activation="selu")))["inner"]
    assert inner == {"class": "influx.models.mlp.Mlp", "depth": 1, "width": 3, "activation": "selu", "dropout": 0.0}
    assert "class Holder:" in describe(Holder(Mlp()))["source"][__name__]
    assert "source" not in describe(Mlp())
    assert digest(describe(Holder(Mlp(width=3)))) != digest(describe(Holder(Mlp(width=4))))
