"""Hydra's grid of a sweep, in which a job whose settings do not even fit together costs only itself.

Hydra's own sweeper composes every job before the first starts, and one that cannot be composed (`method=exact,nosuch`) ends them all. Here
it is refused alone, with its reason in its folder. Hydra finds plugins in the package `hydra_plugins`, hence the place of this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from influx.composing import typed
from influx.errors import InfluxError


class GridSweeper(Sweeper):
    """All combinations of the swept values, in the order of the command line; what cannot be composed is numbered after the others."""

    def __init__(self, params: Mapping[str, str] | None = None) -> None:
        self.params = dict(params or {})
        self.context: HydraContext
        self.launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs; when all have ended, raise the first error of any."""
        assert self.config is not None
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parsed = OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(words)
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        refusals = [self._refusal(job) for job in jobs]
        fitting = [job for job, refusal in zip(jobs, refusals, strict=True) if refusal is None]
        self._check_folders(fitting)
        refused = [(job, refusal) for job, refusal in zip(jobs, refusals, strict=True) if refusal is not None]
        for number, (job, refusal) in enumerate(refused, len(fitting)):
            self._note(folder / str(number), job, refusal)
        try:
            results = list(self.launcher.launch(fitting, initial_job_idx=0)) if fitting else []
        except BaseException:  # a process of the launcher's died: its jobs that have no folder yet are in the summary too
            self._note_missing(folder, fitting)
            raise
        for result in results:
            _ = result.return_value  # raises a failed job's error
        for _, refusal in refused:
            raise refusal
        return results

    def _refusal(self, job: Sequence[str]) -> Exception | None:
        assert self.config is not None
        try:
            self.context.config_loader.load_sweep_config(self.config, list(job))
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            return error
        return None

    def _check_folders(self, jobs: Sequence[Sequence[str]]) -> None:
        """Raise `InfluxError` when a name of the user's for jobs' folders (`hydra.sweep.subdir=`) is that of two jobs."""
        assert self.config is not None
        if not any(word.startswith("hydra.sweep.subdir=") for word in typed(self.config.hydra.overrides.hydra)):
            return
        taken: dict[str, Sequence[str]] = {}
        for number, job in enumerate(jobs):
            name = self._folder(number, job)
            if name in taken:
                raise InfluxError(
                    f"hydra.sweep.subdir gives two jobs the folder {name}: {' '.join(taken[name])} and {' '.join(job)}. Name in it each "
                    "key that is swept, or ${hydra.job.num}."
                )
            taken[name] = job

    def _folder(self, number: int, job: Sequence[str]) -> str:
        """The name of a job's folder."""
        assert self.config is not None
        hydra = HydraConfig.instance()
        known = hydra.cfg
        config = self.context.config_loader.load_sweep_config(self.config, list(job))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = f"{config.hydra.job.name}_{number}", number
        hydra.set_config(config)
        try:
            return str(config.hydra.sweep.subdir)
        finally:
            hydra.cfg = known

    def _note_missing(self, sweep: Path, jobs: Sequence[Sequence[str]]) -> None:
        from influx import sweep_jobs

        begun = sweep_jobs.folders(sweep)
        for number, job in enumerate(jobs):
            if number not in begun:
                sweep_jobs.note_refusal(sweep / self._folder(number, job), job, "the sweep was stopped before it began", number)

    def _note(self, folder: Path, job: Sequence[str], refusal: Exception) -> None:
        from influx import app, sweep_jobs

        assert self.config is not None
        reason, _ = app.explain(refusal, self.config.hydra.job.config_name, list(job))
        sweep_jobs.note_refusal(folder, job, reason)
