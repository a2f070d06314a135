"""Loggers: what a tracker is told of a run, read back through the tracker's own reader, and that it never costs a run anything."""

from __future__ import annotations

import importlib.util
import json
import logging
import struct
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import Run

from influx.errors import NumericalError
from influx.loggers.tensorboard import TensorBoard
from influx.runfolder import source_digest

IRIS = ("dataset=iris", "model=logistic", "dataset.train_size=40", "dataset.test_size=8", "method=exact", "resamples=50")
TRUTH = (*IRIS, "retraining.removed=4", "retraining.seeds=2")
MINE = ("-cd", "conf", "logger=diary")
SAME_BYTES = ("model.safetensors", "history.csv", "influence.npz", "ground_truth.npz", "correlations.csv", "per_test.csv")

DIARY = '''
import json
from dataclasses import dataclass
from pathlib import Path

from influx.loggers import Logger


@dataclass(frozen=True)
class Diary(Logger):
    """A user's own: one JSON file a run."""

    place: str = "diary"

    def log(self, account):
        said = {"name": account.name, "group": account.group, "status": account.status, "command": account.command}
        said |= {"begun": account.begun, "flat": account.flat, "parameters": account.parameters, "metrics": account.metrics}
        said |= {"history": account.history.to_dict("list"), "files": [file.name for file in account.files], "tags": account.tags}
        Path(self.place).mkdir(exist_ok=True)
        (Path(self.place) / f"{account.name.replace('/', '-')}.json").write_text(json.dumps(said))


class Broken(Diary):
    def log(self, account):
        raise ConnectionError("no answer\\nfrom the server")


class Greedy(Diary):
    modules = ("no_such_module", "nor.this")
'''


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with loggers of a user's own."""
    (tmp_path / "my_diary.py").write_text(DIARY)
    (tmp_path / "conf/logger").mkdir(parents=True)
    for name in ("Diary", "Broken", "Greedy"):
        (tmp_path / f"conf/logger/{name.lower()}.yaml").write_text(f"_target_: my_diary.{name}\nplace: diary\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_diary", raising=False)
    return tmp_path


def diary(lab: Path, name: str) -> dict:
    return json.loads((lab / "diary" / f"{name}.json").read_text())


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


# -------------------------------------------------------------------------------------------------------- a user's own


def test_a_logger_is_told_what_the_run_folder_says(run_influx: Run, lab: Path) -> None:
    ran = run_influx("validate", *MINE, *TRUTH, cwd=lab)
    told, said = diary(lab, ran.folder.name), record(ran.folder)
    assert ran.status == 0, ran.err
    assert (told["status"], told["command"], told["group"]) == ("finished", "validate", "")
    assert told["history"] == pd.read_csv(ran.folder / "history.csv").to_dict("list")
    table = pd.read_csv(ran.folder / "correlations.csv").set_index("statistic")
    for statistic in table.index:
        assert told["metrics"][f"correlations/{statistic}"] == table.value[statistic]
        assert told["metrics"][f"correlations/{statistic}_ci_low"] == table.ci_low[statistic]
        assert told["metrics"][f"correlations/{statistic}_ci_high"] == table.ci_high[statistic]
    assert told["metrics"]["correlations/spearman_noise_ceiling"] == table.noise_ceiling["spearman"]
    assert "correlations/slope_noise_ceiling" not in told["metrics"]  # it has none: NaN is left out
    assert {name.partition("/")[2]: value for name, value in told["metrics"].items() if name.startswith("seconds/")} == said[
        "stage_seconds"
    ]
    assert told["metrics"]["facts/test_accuracy"] == said["facts"]["test_accuracy"]
    assert told["tags"]["config_digest"] == said["config_digest"]
    assert told["tags"]["folder"] == str(ran.folder)
    assert {"run.json", "correlations.csv", "correlations.md", "top_influences.csv"} <= {*told["files"]}
    assert not {"influence.npz", "model.safetensors"} & {*told["files"]}


def test_parameters_are_the_configuration_with_the_chosen_options(run_influx: Run, lab: Path) -> None:
    ran = run_influx("validate", *MINE, *TRUTH, "dataset.classes=[0,1]", cwd=lab)
    flat = diary(lab, ran.folder.name)["flat"]
    assert (flat["dataset.option"], flat["dataset.train_size"], flat["dataset.classes"]) == ("iris", 40, "[0, 1]")
    assert (flat["method.option"], flat["method.solver.option"], flat["method.damping"]) == ("exact", "exact", 0.0)
    assert (flat["seed"], flat["training.option"], flat["path"]) == (0, "newton", "null")
    assert not [name for name in flat if "_target_" in name or name.startswith("logger")]


def test_the_commit_of_the_folder_is_a_tag(run_influx: Run, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("influx.runfolder._git_commit", lambda: "c0ffee")
    ran = run_influx("train", *MINE, *IRIS[:4], cwd=lab)
    assert diary(lab, ran.folder.name)["tags"]["git_commit"] == "c0ffee"


@pytest.mark.parametrize("command", ["train", "estimate"])
def test_every_command_that_trains_has_loggers(run_influx: Run, lab: Path, command: str) -> None:
    words = IRIS[: 4 if command == "train" else 5]
    told = diary(lab, run_influx(command, *MINE, *words, cwd=lab).folder.name)
    assert (told["command"], told["status"]) == (command, "finished")
    assert not [name for name in told["metrics"] if name.startswith("correlations")]
    assert len(told["history"]["loss"]) > 1


def test_a_task_tells_its_own_methods_scores(run_influx: Run, lab: Path) -> None:
    words = ("task=mislabeled", "dataset.label_noise=0.1", "task.seeds=2", *IRIS)
    ran = run_influx("validate", *MINE, *words, cwd=lab)
    table = pd.read_csv(ran.folder / "detection.csv")
    own = table[table.score == "exact"].set_index("statistic")["value"]
    metrics = diary(lab, ran.folder.name)["metrics"]
    assert {name.partition("/")[2] for name in metrics if name.startswith("detection/") and "_ci_" not in name} == {*own.index}
    assert metrics["detection/roc_auc"] == own["roc_auc"]


def test_a_sweeps_jobs_are_a_group(run_influx: Run, lab: Path) -> None:
    run_influx("train", "-m", *MINE, *IRIS[:4], "seed=0,1", "hydra.sweep.dir=sweep", cwd=lab)
    said = [diary(lab, f"sweep-{job}") for job in range(2)]
    assert [(one["name"], one["group"], one["flat"]["seed"]) for one in said] == [("sweep/0", "sweep", 0), ("sweep/1", "sweep", 1)]


@pytest.mark.parametrize(
    ("error", "status", "exit_status"),
    [(NumericalError("it diverged"), "failed: it diverged", 2), (KeyboardInterrupt(), "failed: KeyboardInterrupt", 130)],
)
def test_a_failed_run_is_told_too(
    run_influx: Run, lab: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str, exit_status: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("influx.experiment.Experiment.train", fail)
    ran = run_influx("train", *MINE, *IRIS[:4], cwd=lab)
    told = diary(lab, ran.folder.name)
    assert ran.status == exit_status
    assert (told["status"], told["history"]) == (status, {"epoch": []})
    assert told["flat"]["dataset.option"] == "iris"


# ------------------------------------------------------------------------------------------------- what it must not do


def test_a_logger_changes_no_number_no_digest_and_no_key(run_influx: Run, lab: Path) -> None:
    plain = run_influx("validate", *TRUTH, cwd=lab)
    logged = run_influx("validate", *MINE, *TRUTH, cwd=lab)
    for name in SAME_BYTES:
        assert (plain.folder / name).read_bytes() == (logged.folder / name).read_bytes(), name
    assert record(plain.folder)["config_digest"] == record(logged.folder)["config_digest"]
    assert record(plain.folder)["reused"] == []
    assert "model" in record(logged.folder)["reused"]  # the store's keys are the same


def test_the_code_of_loggers_makes_no_run_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    content = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: (read.append(str(self)), content(self))[1])
    source_digest.__wrapped__()
    assert len(read) > 100
    assert [name for name in read if "logger" in name or "runs.py" in name] == []


def test_a_logger_that_breaks_costs_one_line(run_influx: Run, lab: Path) -> None:
    ran = run_influx("validate", "-cd", "conf", "logger=broken", *TRUTH, cwd=lab)
    line = "Broken did not take the account of this run (no answer); the run folder has everything."
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines()[-1] == f"warning: {line}"
    assert record(ran.folder)["warnings"] == [line]
    assert record(ran.folder)["status"] == "finished"
    assert (ran.folder / "correlations.csv").is_file()


def test_a_logger_that_breaks_hides_no_error(run_influx: Run, lab: Path) -> None:
    ran = run_influx("train", "-cd", "conf", "logger=broken", "dataset=diabetes", "model=logistic", cwd=lab)
    assert ran.status == 2
    assert ran.err.startswith("influx: model=logistic is for classification")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("-cd", "conf", "logger=greedy"),
            "Greedy needs no_such_module, nor.this, which is not installed: install no_such_module, nor.this, or l",
        ),
        (("logger=tensorbord",), "logger=tensorbord is not known; choose from mlflow, tensorboard, wandb. Did you mean 'tensorboard'?"),
        (
            ("logger=wandb", "logger.mode=onlin"),
            "logger.mode=onlin is not possible: it must be one of offline, online, disabled. Did you mean",
        ),
        (("logger=mlflow", "logger.experiment=''"), "logger.experiment= is not possible: it must be a text."),
        (("logger.mode=online",), "logger.mode needs an option of logger, and none was chosen: add logger=mlflow|tensorboard|wandb."),
        (
            ("logger=wandb", "logger.mod=online"),
            "there is no key 'logger.mod'; there are logger.dir, logger.entity, logger.files, logger.mode, logger.project.",
        ),
        (
            ("+logger._target_=influx.models.mlp.Mlp",),
            "logger: influx.models.mlp.Mlp is not a kind of influx.loggers.base.Logger; derive it",
        ),
    ],
)
def test_a_wrong_logger_is_refused_before_training(run_influx: Run, lab: Path, words: tuple[str, ...], message: str) -> None:
    ran = run_influx("train", *words, *IRIS[:4], cwd=lab)
    assert ran.status == 2
    assert ran.err.startswith(f"influx: {message}"), ran.err
    assert not list(lab.glob("outputs/**/model.safetensors"))


def test_a_missing_package_is_named_with_its_extra(run_influx: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorBoard, "modules", ("no_such_module",))
    ran = run_influx("train", *IRIS[:4], "logger=tensorboard", cwd=tmp_path)
    line = "TensorBoard needs no_such_module, which is not installed: pip install 'influx[tensorboard]', or leave logger= out."
    assert (ran.status, ran.err) == (2, f"influx: {line}\n")
    assert record(ran.folder)["status"] == f"failed: {line}"
    assert not (ran.folder / "model.safetensors").exists()


def test_a_run_is_repeated_with_its_logger_or_without(run_influx: Run, lab: Path) -> None:
    first = run_influx("train", *MINE, *IRIS[:4], cwd=lab)
    again = run_influx("rerun", str(first.folder), cwd=lab)
    without = run_influx("rerun", str(first.folder), "~logger", cwd=lab)
    assert (again.status, without.status) == (0, 0), again.err + without.err
    assert {file.stem for file in (lab / "diary").iterdir()} == {first.folder.name, again.folder.name}
    assert record(without.folder)["config_digest"] == record(first.folder)["config_digest"]


def test_a_logger_cannot_be_chosen_for_a_repeated_run_by_a_word(run_influx: Run, lab: Path) -> None:
    first = run_influx("train", *IRIS[:4], cwd=lab)
    ran = run_influx("rerun", str(first.folder), "+logger=mlflow", cwd=lab)
    assert ran.status == 2
    assert "logger=mlflow is not possible here: a run is repeated with its own logger (~logger leaves it out)." in ran.err


# ------------------------------------------------------------------------------------------------------- the trackers


def needs(*modules: str) -> pytest.MarkDecorator:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"needs {', '.join(absent)}")


@pytest.mark.tensorboard
@needs("tensorboard")
def test_tensorboard_reads_it_back(run_influx: Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = (*TRUTH, "logger=tensorboard", "hydra.run.dir=run")
    run_influx("validate", *TRUTH, "hydra.run.dir=run", "seed=9", "logger=tensorboard", cwd=tmp_path)
    run_influx("validate", *words, cwd=tmp_path, pictures=True)  # in the same folder: what the first run left is gone
    found = EventAccumulator(str(tmp_path / "run/tensorboard"), {"scalars": 0, "images": 0, "tensors": 0}).Reload()
    history = pd.read_csv(tmp_path / "run/history.csv")
    losses = found.Scalars("training/loss")
    assert [event.step for event in losses] == history.epoch.tolist()
    assert [event.value for event in losses] == pytest.approx(history.loss.tolist(), rel=1e-6)  # float32
    table = pd.read_csv(tmp_path / "run/correlations.csv").set_index("statistic")
    assert [event.value for event in found.Scalars("correlations/spearman_ci_low")] == [pytest.approx(table.ci_low["spearman"], rel=1e-6)]
    assert [event.value for event in found.Scalars("correlations/spearman")] == [pytest.approx(table.value["spearman"], rel=1e-6)]
    assert {"scatter", "history", "top_influences"} <= {*found.Tags()["images"]}
    markdown = found.Tensors("correlations.md/text_summary")[0].tensor_proto.string_val[0].decode()
    assert markdown == (tmp_path / "run/correlations.md").read_text()
    plugins = found.PluginTagToContent("hparams")
    said = plugins["_hparams_/session_start_info"]
    assert b"method.option" in said
    assert b"dataset.train_size" in said  # it was set on the command line
    assert b"dataset.label_noise" not in said


@pytest.mark.mlflow
@needs("mlflow", "sqlalchemy", "alembic")
def test_mlflow_reads_it_back(run_influx: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ran = run_influx("validate", *TRUTH, "logger=mlflow", cwd=tmp_path)
    run_influx("train", "dataset=diabetes", "model=logistic", "logger=mlflow", cwd=tmp_path)
    assert (ran.status, record(ran.folder)["warnings"]) == (0, [])
    assert "alembic" not in ran.out + ran.err
    uri = f"sqlite:///{tmp_path}/outputs/mlflow/mlflow.db"
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("influx")
    good, failed = sorted(client.search_runs([experiment.experiment_id]), key=lambda run: run.info.status != "FINISHED")
    assert (good.info.run_name, good.info.status, failed.info.status) == (ran.folder.name, "FINISHED", "FAILED")
    assert failed.data.tags["status"].startswith("failed: model=logistic is for classification")
    assert (good.data.params["method.option"], good.data.params["dataset.train_size"]) == ("exact", "40")
    table = pd.read_csv(ran.folder / "correlations.csv").set_index("statistic")
    assert good.data.metrics["correlations/spearman"] == pytest.approx(table.value["spearman"], rel=1e-12)
    history = pd.read_csv(ran.folder / "history.csv")
    losses = client.get_metric_history(good.info.run_id, "training/loss")
    assert [(metric.step, metric.value) for metric in losses] == [*zip(history.epoch, history.loss, strict=True)]
    assert good.data.tags["config_digest"] == record(ran.folder)["config_digest"]
    kept = {file.path for file in client.list_artifacts(good.info.run_id)}
    assert {"correlations.csv", "correlations.md", "run.json"} <= kept
    copied = Path(good.info.artifact_uri.removeprefix("file://")) / "correlations.csv"
    assert copied.read_bytes() == (ran.folder / "correlations.csv").read_bytes()
    assert str(copied).startswith(str(tmp_path / "outputs/mlflow/artifacts/influx"))
    logging.getLogger("alembic").setLevel(logging.NOTSET)


@pytest.mark.mlflow
@needs("mlflow", "sqlalchemy", "alembic")
def test_mlflow_that_does_not_answer_costs_one_line(run_influx: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("influx.loggers.mlflow.RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")  # set back afterwards
    ran = run_influx("train", *IRIS[:4], "logger=mlflow", "logger.uri=http://127.0.0.1:9", cwd=tmp_path)
    assert ran.status == 0
    assert len(record(ran.folder)["warnings"]) == 1
    assert record(ran.folder)["warnings"][0].startswith("Mlflow did not take the account of this run (API request to http://127.0.0.1:9")
    assert len(record(ran.folder)["warnings"][0]) < 320
    assert "Retrying" not in ran.out + ran.err


def wandb_records(file: Path) -> list:
    """What an offline run's file holds: wandb's own messages, in LevelDB's log format (blocks of 32 KiB, parts with a head of 7 bytes)."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, part, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        if at % 32768 > 32768 - 7:  # no room for a head: zeros up to the next block
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        part += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(part))
            part = b""
    return found


@pytest.mark.wandb
@needs("wandb")
def test_wandb_reads_it_back_without_an_account(run_influx: Run, tmp_path: Path) -> None:
    import wandb

    ran = run_influx("validate", *TRUTH, "logger=wandb", cwd=tmp_path, pictures=True)
    wandb.teardown()  # as at the end of a process: its helper has then written everything
    assert (ran.status, record(ran.folder)["warnings"]) == (0, [])
    (file,) = tmp_path.glob("outputs/wandb/wandb/offline-run-*/run-*.wandb")
    records = wandb_records(file)
    kinds = [one.WhichOneof("record_type") for one in records]
    begun = records[kinds.index("run")].run
    assert (begun.display_name, begun.project, begun.job_type) == (ran.folder.name, "influx", "validate")
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert (config["method"]["option"], config["dataset"]["train_size"]) == ("exact", 40)
    assert config["tags"]["config_digest"] == record(ran.folder)["config_digest"]
    rows = [
        {item.key or "/".join(item.nested_key): item.value_json for item in one.history.item} for one in records if one.HasField("history")
    ]
    history = pd.read_csv(ran.folder / "history.csv")
    assert [json.loads(row["training/loss"]) for row in rows if "training/loss" in row] == history.loss.tolist()
    assert any("pictures/scatter/path" in row for row in rows)
    summary = {(item.key or "/".join(item.nested_key)): item.value_json for one in records for item in one.summary.update}
    table = pd.read_csv(ran.folder / "correlations.csv").set_index("statistic")
    assert json.loads(summary["correlations/spearman"]) == table.value["spearman"]
    assert json.loads(summary["status"]) == "finished"
    saved = {item.path for one in records for item in one.files.files}
    assert {"correlations.csv", "run.json", "scatter.png"} <= saved
    assert (file.parent / "files/correlations.csv").read_bytes() == (ran.folder / "correlations.csv").read_bytes()
    assert not (file.parent / "files/correlations.csv").is_symlink()
    assert [one.exit.exit_code for one in records if one.HasField("exit")] == [0]


def test_logger_files_say_how_to_look_at_them() -> None:
    for file in (Path(__file__).parents[1] / "conf/logger").glob("*.yaml"):
        assert set(yaml.safe_load(file.read_text())) >= {"_target_", "files"}
