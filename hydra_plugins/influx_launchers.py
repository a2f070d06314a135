"""A sweep's jobs on a ray cluster, and what influx's own settings of other launchers need.

hydra-ray-launcher is not used: it cannot join a cluster that runs already (it always asks for an object store of its own), leaves results
where each node was started, loses a whole sweep with one killed process, and needs a cloudpickle that is too old for dask.
Hydra finds plugins in the package `hydra_plugins`, hence the place of this file.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from influx.errors import InfluxError

log = logging.getLogger(__name__)


def _cores() -> int:
    from influx import launching

    return launching.cores()


OmegaConf.register_new_resolver("influx.cores", _cores, replace=True)  # ${influx.cores:} in YAML

OURS = {"launcher": ("joblib", "ray", "submitit_local", "submitit_slurm"), "sweeper": ("optuna",)}  # conf/hydra/GROUP/NAME.yaml


class OwnSettings(SearchPathPlugin):
    """Lets influx's YAML stand for the settings that plugins register under the same names: Hydra would warn, or refuse both."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        registered = ConfigStore.instance().repo.get("hydra", {})
        for group, names in OURS.items():
            for name in names:
                registered.get(group, {}).pop(f"{name}.yaml", None)


class RayLauncher(Launcher):
    """Each job is a task of ray; one that fails, or whose process dies, leaves the others alone.

    Args:
        address: of a running cluster, or "local" for one on this machine until the jobs have ended. A ray that this process is connected
            to is used as it is.
        cores: jobs at once, for "local".
        task: options of `ray.remote`.
    """

    def __init__(self, address: str, cores: int, task: Mapping[str, Any]) -> None:
        self.address, self.cores, self.task = address, cores, dict(task)
        self.context: HydraContext
        self.function: TaskFunction
        self.config: DictConfig

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """The jobs' returns, in order.

        Raises:
            InfluxError: no ray cluster can be used; or the jobs would wait for ever for the processors that they hold themselves.
        """
        import ray

        from influx import clusters

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        ours = not ray.is_initialized()
        if ours:
            clusters.connect_ray(self.address, self.cores, key="hydra.launcher.address")
        try:
            return self._gathered([self._begin(number, words) for number, words in enumerate(job_overrides, initial_job_idx)])
        finally:
            if ours:
                ray.shutdown()

    def _begin(self, number: int, words: Sequence[str]) -> tuple[Any, DictConfig, list[str]]:
        import ray

        config = self.context.config_loader.load_sweep_config(self.config, list(words))
        if OmegaConf.select(config, "retraining.backend") == "ray" and self.task.get("num_cpus", 1) > 0:
            raise InfluxError(
                "retraining.backend=ray is not possible in jobs that hold ray's processors: leave it out, or hydra/launcher=ray."
            )
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = f"{config.hydra.job.name}_{number}", number
        log.info("\t#%d : %s", number, " ".join(filter_overrides(words)))
        run = ray.remote(**self.task)(_run)
        return run.remote(os.getcwd(), self.context, self.function, config, Singleton.get_state()), config, list(words)

    def _gathered(self, begun: list[tuple[Any, DictConfig, list[str]]]) -> list[JobReturn]:
        import ray

        asked = {call: (config, words) for call, config, words in begun}
        returned, waiting = {}, list(asked)
        while waiting:
            (done, *_), waiting = ray.wait(waiting, num_returns=1)
            returned[done] = _returned(done, *asked[done])
            log.info("\t#%d %s (%d of %d)", asked[done][0].hydra.job.num, returned[done].status.name.lower(), len(returned), len(asked))
        return [returned[call] for call in asked]


def _run(folder: str, context: HydraContext, task: TaskFunction, config: DictConfig, state: Any) -> JobReturn:
    """One job, on a node, in the folder in which the sweep was started."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise InfluxError(f"{socket.gethostname()} has no folder {folder}: start the sweep in one that all nodes share.") from error
    setup_globals()
    Singleton.set_state(state)
    HydraConfig.instance().set_config(config)
    return run_job(
        hydra_context=context, task_function=task, config=config, job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir"
    )


def _returned(call: Any, config: DictConfig, words: list[str]) -> JobReturn:
    """A job's return; that of a failed one when it did not come to an end."""
    import ray

    from influx import clusters, sweep_jobs

    try:
        done: JobReturn = ray.get(call)
        return done
    except ray.exceptions.RayTaskError as error:
        said = error.cause if isinstance(error.cause, InfluxError) else InfluxError(clusters.unable("ray", error.cause))
    except ray.exceptions.RayError:
        said = InfluxError(f"the ray process of job {config.hydra.job.num} was killed, most often because memory ran out.")
    folder = _folder(config)
    if (folder / ".hydra" / "overrides.yaml").is_file():
        sweep_jobs.note_failure(folder, said)
    else:
        sweep_jobs.note_refusal(folder, words, str(said))
    failed = JobReturn(overrides=words, cfg=config, status=JobStatus.FAILED)
    failed.return_value = said
    return failed


def _folder(config: DictConfig) -> Path:
    """A job's folder; by default its name asks Hydra for the number of the job that runs."""
    hydra = HydraConfig.instance()
    known = hydra.cfg
    hydra.set_config(config)
    try:
        return Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)
    finally:
        hydra.cfg = known
