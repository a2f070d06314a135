"""Many jobs of a command from inside a job, through Hydra's own launchers: in this process, in several, or on a cluster."""

from __future__ import annotations

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
from omegaconf import OmegaConf

from influx.configuration import quoted

QUIET = ("hydra.job_logging.root.handlers=[file]", "hydra/hydra_logging=disabled")  # each job's words go to its own folder


def launch(task: Callable[..., Any], command: str, jobs: Sequence[tuple[str, Sequence[str]]], folder: Path, workers: int) -> None:
    """Run `influx <command> <settings>` for each (place, settings) of `jobs`, in `folder/place`.

    With the launcher that the command line chose; without one, in `workers` processes of this machine, or here when that is 1.
    A job that fails leaves its reason in its run.json, and the others go on.
    """
    settings, loader = HydraConfig.get(), GlobalHydra.instance().config_loader()
    chosen = settings.runtime.choices["hydra/launcher"]
    own = [word for word in settings.overrides.hydra if word.startswith(("hydra/launcher=", "hydra.launcher."))]
    if chosen == "basic" and workers > 1:
        own = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}"]
    words = ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={quoted(str(folder))}", *QUIET, *own]
    config = loader.load_configuration(command, words, RunMode.MULTIRUN, from_shell=False)
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
