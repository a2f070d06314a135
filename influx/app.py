"""The hand-over to Hydra: where the configuration is, what runs as a job, and how an error is shown."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from influx import composing, rules, sweep_resume
from influx.configuration import conf_dir
from influx.errors import InfluxError, nearest

log = logging.getLogger("influx")

_traceback_wanted: ContextVar[bool] = ContextVar("traceback_wanted", default=False)
_sweep_folder: ContextVar[Path | None] = ContextVar("sweep_folder", default=None)


def launch(command: str, arguments: list[str]) -> int:
    """Run one command through Hydra; the exit status is 0, 1 (it broke) or 2 (the input is wrong)."""
    conf = conf_dir()
    _refuse_shadowing(conf, _config_dir(arguments))
    wanted_full = bool(os.environ.get("HYDRA_FULL_ERROR"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them, and they are shown here
    _traceback_wanted.set(wanted_full)
    before, sys.argv = sys.argv, ["influx", *arguments]
    loud, logging.raiseExceptions = logging.raiseExceptions, False  # a reader who has seen enough costs no traceback a line, and no run
    try:
        try:
            hydra.main(version_base="1.3", config_path=str(conf), config_name=command)(job)()
        finally:
            failed = _summarise()
            sweep_resume.release()
        return min(failed, 1)  # a sweeper that goes on after failures raises none
    except BrokenPipeError:  # the reader of our output has seen enough; nothing is left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if wanted_full:
            traceback.print_exc()
        text, status = explain(error, command, arguments)
        print(f"influx: {text}", file=sys.stderr)
        return status
    except KeyboardInterrupt:
        print("influx: interrupted; finished results are in the store, and the same command goes on from there.", file=sys.stderr)
        return 130
    finally:
        sys.argv, logging.raiseExceptions = before, loud
        if not wanted_full:
            del os.environ["HYDRA_FULL_ERROR"]


def job(cfg: DictConfig) -> float | None:
    """One Hydra job, but for one of a sweep that is finished in its folder, unless fresh=true."""
    settings = HydraConfig.get()
    if settings.mode == RunMode.MULTIRUN and not cfg.get("fresh"):
        found = sweep_resume.finished(cfg, Path(settings.runtime.output_dir))
        if found is not None:
            return found.get("returned")
    return _job(cfg)


def _job(cfg: DictConfig) -> float | None:
    """In a sweep an error is raised, so that the sweep notes it and goes on; a single run ends with one line."""
    settings = HydraConfig.get()
    try:
        config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
        choices = config.pop("choices", None) or {k: v for k, v in settings.runtime.choices.items() if "/" not in k and v}
        overrides = [word for word in composing.typed(settings.overrides.task) if not word.startswith("++choices=")]
        rules.check_config(config)
        rules.check_command(config)
        if config["command"] == "reproduce":
            _reproduce(config, choices, Path(settings.runtime.output_dir), overrides)
            return None
        from influx.pipelines import run_command  # torch is imported from here on

        config.pop("fresh", None)
        return run_command(config, choices, Path(settings.runtime.output_dir), overrides)
    except (InfluxError, OmegaConfBaseException) as error:
        if settings.mode == RunMode.MULTIRUN:
            from influx.sweep_jobs import note_failure

            note_failure(Path(settings.runtime.output_dir), error)
            raise
        if _traceback_wanted.get():
            raise
        _stop(error)


def quiet_job(cfg: DictConfig) -> float | None:
    """One Hydra job among many, whose progress nobody looks at."""
    from influx.progress import silence

    with silence():
        return _job(cfg)


def _reproduce(config: dict[str, Any], choices: Mapping[str, str], path: Path, overrides: list[str]) -> None:
    from influx import launching
    from influx.pipelines.reproduce import chosen_studies, run

    def launch(jobs: Sequence[tuple[str, Sequence[str]]], folder: Path, workers: int) -> None:
        launching.launch(quiet_job, "validate", jobs, folder, workers)

    def load(name: str) -> dict[str, Any]:
        return launching.option("reproduce", "study", name)

    studies = chosen_studies(config.get("study"), choices.get("study"), launching.options("study"), load)
    run(studies, config, path, overrides, launch, launching.cores())


def _stop(error: Exception) -> NoReturn:
    """End the process from inside Hydra, which would only warn of an exception, or add lines of its own to it."""
    if _traceback_wanted.get():
        traceback.print_exc()
    print(f"influx: {str(error).strip().splitlines()[0]}", file=sys.stderr)
    raise SystemExit(2) from error


class Preflight(Callback):
    """Checks values before a run's folder is made. Hydra only warns of exceptions in a callback, hence the exit."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        try:
            for place in config.hydra.searchpath:
                _refuse_shadowing(conf_dir(), place.removeprefix("file://"))
            settings = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
            plain: dict[str, Any] = OmegaConf.to_container(settings, resolve=True)  # type: ignore[assignment]
            rules.check_config(plain)
            rules.check_command(plain)
        except (InfluxError, InterpolationKeyError) as error:
            _stop(error)
        except OmegaConfBaseException:
            log.debug("a value that is known only inside the job is checked there")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        from influx import launching

        try:
            launching.check_engines(config)
            for place in config.hydra.searchpath:
                _refuse_shadowing(conf_dir(), place.removeprefix("file://"))
        except InfluxError as error:
            _stop(error)


class Summary(Callback):
    """Has a sweep's jobs joined into one table and one figure. Hydra tells callbacks of the end only when no job has failed, so this one
    remembers the place and `launch` sees to the rest."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _sweep_folder.set(Path(config.hydra.sweep.dir).resolve())


def _summarise() -> int:
    """Join the sweep that has ended, if there was one; how many of its jobs are not finished."""
    folder = _sweep_folder.get()
    _sweep_folder.set(None)
    if folder is None:
        return 0
    from influx import sweeps

    try:
        return sweeps.join(folder)
    except BrokenPipeError:  # all is written by then
        raise
    except (InfluxError, OSError, ValueError) as error:  # the jobs' own results are there
        print(f"influx: the sweep's summary could not be written: {error}", file=sys.stderr)
        return 0


def rerun(arguments: list[str]) -> int:
    """Repeat a run from its folder: its own resolved configuration, not today's defaults.

    Raises:
        InfluxError: the folder holds no run.
    """
    if not arguments:
        raise InfluxError("rerun needs a run folder: influx rerun outputs/validate/runs/...")
    if arguments[0] in ("-h", "--help"):
        print("usage: influx rerun RUN_FOLDER [key=value ...]\n\nRepeats a run with its own configuration, not with today's defaults.")
        return 0
    folder = Path(arguments[0]).resolve()
    record = folder / "run.json"
    if not record.is_file() or not (folder / ".hydra" / "config.yaml").is_file():
        raise InfluxError(f"{arguments[0]} is not a run folder: it has no run.json and .hydra/config.yaml.")
    try:
        said = json.loads(record.read_text())
        command, words = said["command"], said["overrides"]
        choices = {} if command == "reproduce" else said["choices"]
    except (ValueError, KeyError) as error:
        raise InfluxError(f"{record} is damaged: it does not say what was run.") from error
    given = {word.lstrip("+~").partition("=")[0] for word in arguments[1:]}
    if command == "reproduce":  # its jobs are composed from today's files, by the same words
        return launch(command, [*arguments[1:], *(word for word in words if word.partition("=")[0] not in given)])
    chosen = ",".join(f"{group}:{option}" for group, option in choices.items())
    again = [word for word in _own_hydra_settings() if word.lstrip("+").partition("=")[0] not in given]
    return launch(command, ["-cp", str(folder / ".hydra"), "-cn", "config", *arguments[1:], f"++choices={{{chosen}}}", *again])


def _own_hydra_settings() -> list[str]:
    """The `hydra:` section of base.yaml as overrides: a saved configuration has lost it."""
    base: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(conf_dir() / "base.yaml"))  # type: ignore[assignment]
    leaves = [(key, value) for key, value in _flat(base["hydra"]) if not isinstance(value, Mapping)]
    return [f"++hydra.{key}='{value}'" for key, value in leaves if not key.startswith("help.")]


def _config_dir(arguments: list[str]) -> str | None:
    for flag, value in zip(arguments, [*arguments, ""][1:], strict=True):
        name, _, attached = flag.partition("=")
        if name in ("-cd", "--config-dir"):
            return attached or value
    return None


def _refuse_shadowing(conf: Path, extra: str | None) -> None:
    """Hydra ignores a user's YAML that has a built-in's name, without a word; here it is an error."""
    if extra is None:
        return
    folder = Path(extra).resolve()
    if folder == conf.resolve() or not folder.is_dir():
        return
    for file in sorted(folder.rglob("*.yaml")):
        place = file.relative_to(folder)
        if (conf / place).is_file():
            raise InfluxError(f"{file} has the name of a built-in option and would be ignored: give it another name than {place.stem}.")


def explain(error: Exception, command: str, arguments: list[str]) -> tuple[str, int]:
    """An error as one clear line, and the exit status."""
    if isinstance(error, InfluxError):
        return str(error), 2
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = list(error.options or ())
        if not options:
            return f"there is no configuration '{error.missing_cfg_file}'.", 2
        return f"{group}={option} is not known; choose from {', '.join(options)}.{nearest(option, options)}", 2
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}': settings are key=value, without spaces around '='.", 2
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_configuration(error, command, arguments), 2
    if isinstance(error, ValueError) and "Config group override" in str(error):
        return "a group=option setting needs the name of an option: influx COMMAND --help lists them.", 2
    if type(error).__name__ == "TerminatedWorkerError":  # joblib's, which is not imported for its name alone
        return (
            "a process of the sweep was killed, most often because memory ran out; the same command goes on with what is not finished "
            "(with fewer at once: hydra.launcher.n_jobs=...).", 1
        )  # fmt: skip
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot write {error.filename} ({error.strerror}): choose another folder with hydra.run.dir=... or store.dir=...", 2
    return f"{type(error).__name__}: {error}\nThis is not your input's fault. HYDRA_FULL_ERROR=1 shows where it happened.", 1


def _explain_configuration(error: Exception, command: str, arguments: list[str]) -> str:
    text = "\n".join(map(str, filter(None, (error, error.__cause__))))
    several = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if several:
        return f"{several[1]} has several values: add -m to run once for each, or write [a,b] for a list."
    unknown = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'", text)
    if unknown and isinstance(error, ConfigCompositionException):
        return _explain_key(unknown[1].split("=")[0], text, command, arguments)
    return str(error).strip().splitlines()[0]


def _explain_key(key: str, text: str, command: str, arguments: list[str]) -> str:
    """What to say of a key that cannot be set; `text` is Hydra's own complaint."""
    placed = re.search(r"Did you mean to override (\S+@\S+)\?", text)
    if placed:
        return f"'{key}' is chosen inside another group: write {placed[1]}=..."
    if "already at" in text:
        return f"'{key}' exists already: leave out the +."
    if key == "measurement.tests":
        return "word tests have names of their own: add one with '+measurement.tests.<name>={X:[...],Y:[...],A:[...],B:[...]}'."
    group = key.partition(".")[0]
    if (conf_dir() / group).is_dir() and ("." not in key or not any(word.startswith(f"{group}=") for word in arguments)):
        elsewhere = _of_a_group_left_out(command, key, group)
        if elsewhere:
            return elsewhere
    if any(word.startswith(f"{group}=") and ("," in word or "(" in word) for word in arguments):  # composed with the default option
        return f"there is no key '{key}' for every {group} of the sweep: write ++{key}=..., which sets it where it is missing."
    return _nearest_key(key, sorted(_known_keys(command, arguments)))


def _nearest_key(key: str, known: list[str]) -> str:
    """A key that is not there, those beside it, and the one that may have been meant."""
    level, _, last = key.rpartition(".")
    beside = [name for name in known if name.rpartition(".")[0] == level] or [name for name in known if "." not in name]
    inside = [name for name in known if level and name.startswith(f"{level}.")]
    deeper = [name for name in inside if name.rpartition(".")[2] == last]
    hint = f" Did you mean '{deeper[0]}'?" if deeper else nearest(key, inside or known)
    return f"there is no key '{key}'; there are {', '.join(beside)}.{hint}"


def _of_a_group_left_out(command: str, key: str, group: str) -> str:
    """What to say of a key of a group that nothing was chosen from, or that another command has; empty when it is neither."""
    holders = [file.stem for file in sorted(conf_dir().glob("*.yaml")) if f"  - {group}:" in file.read_text()]
    if command not in holders:
        return f"{group} belongs to influx {', '.join(holders)}." if holders else ""
    if f"  - {group}: null" in (conf_dir() / f"{command}.yaml").read_text():
        options = "|".join(sorted(file.stem for file in (conf_dir() / group).glob("*.yaml")))
        return f"{key} needs an option of {group}, and none was chosen: add {group}={options}."
    return ""


def _known_keys(command: str, arguments: list[str]) -> set[str]:
    """Every key of the command's configuration, with the group options that the line chose, as far as those exist."""
    groups = {place.name for place in conf_dir().iterdir() if place.is_dir()}
    chosen = [word for word in arguments if word.partition("=")[0].partition("@")[0] in groups and "," not in word]
    try:
        composed, _ = composing.compose(command, chosen)
    except (HydraException, OmegaConfBaseException):
        composed, _ = composing.compose(command, ())
    keys = {key for key, _ in _flat(composed)}
    return {key for key in keys if not key.endswith("_target_")} | {"experiment"}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        yield f"{prefix}{name}", value
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
