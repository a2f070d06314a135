"""Many jobs of a command from inside a job, through Hydra's own launchers: in this process, in several, or on a cluster."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import joblib
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from influx.composing import typed
from influx.configuration import quoted
from influx.errors import InfluxError

QUIET = ("hydra.job_logging.root.handlers=[file]", "hydra/hydra_logging=disabled")  # each job's words go to its own folder

NEEDS = {  # class that runs a sweep's jobs, or chooses them: module that it needs, and the extra that brings it
    "hydra_plugins.influx_launchers.RayLauncher": ("ray", "ray"),
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": ("hydra_plugins.hydra_submitit_launcher", "submitit"),
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher": ("hydra_plugins.hydra_submitit_launcher", "submitit"),
    "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper": ("hydra_plugins.hydra_optuna_sweeper", "optuna"),
}


def check_engines(config: DictConfig) -> None:
    """Refuse a launcher or sweeper that is not installed, by its name on the command line.

    Raises:
        InfluxError: its extra is missing, or SLURM is.
    """
    choices = config.hydra.runtime.choices
    for group in ("launcher", "sweeper"):
        module, extra = NEEDS.get(config.hydra[group]._target_, (None, None))
        name = choices[f"hydra/{group}"]
        if module is not None and importlib.util.find_spec(module) is None:
            raise InfluxError(f"hydra/{group}={name} needs an extra: pip install 'influx[{extra}]'.")
        if name == "submitit_slurm" and shutil.which("srun") is None:
            raise InfluxError("hydra/launcher=submitit_slurm finds no SLURM (srun) on this machine: start the sweep on a login node.")


def launch(task: Callable[..., Any], command: str, jobs: Sequence[tuple[str, Sequence[str]]], folder: Path, workers: int) -> None:
    """Run `influx <command> <settings>` for each (place, settings) of `jobs`, in `folder/place`.

    With the launcher that the command line chose; without one, in `workers` processes of this machine, or here when that is 1.
    A job that fails leaves its reason in its run.json, and the others go on.

    Raises:
        InfluxError: the launcher's extra is missing, or its cluster cannot be used.
    """
    settings, loader = HydraConfig.get(), GlobalHydra.instance().config_loader()
    chosen = settings.runtime.choices["hydra/launcher"]
    own = [word for word in typed(settings.overrides.hydra) if word.startswith(("hydra/launcher=", "hydra.launcher."))]
    if chosen == "basic" and workers > 1:
        own = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}"]
    words = ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={quoted(str(folder))}", *QUIET, *own]
    config = loader.load_configuration(command, words, RunMode.MULTIRUN, from_shell=False)
    check_engines(config)
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
    try:
        launcher.launch([[*said, f"hydra.sweep.subdir={quoted(place)}"] for place, said in jobs], initial_job_idx=0)
    finally:
        configure_log(settings.job_logging, settings.verbose)  # type: ignore[arg-type]  # a DictConfig


def cores() -> int:
    """Physical cores that this process may use."""
    return int(joblib.cpu_count(only_physical_cores=True))


def options(group: str) -> list[str]:
    """The names of a group's YAML files, the user's own among them."""
    return sorted(GlobalHydra.instance().config_loader().get_group_options(group))


def option(command: str, group: str, name: str) -> dict[str, Any]:
    """One option of a group, as plain data."""
    loader = GlobalHydra.instance().config_loader()
    composed = loader.load_configuration(command, [f"{group}={name}"], RunMode.RUN, from_shell=False)
    found: dict[str, Any] = OmegaConf.to_container(composed[group], resolve=True)  # type: ignore[assignment]
    return found
