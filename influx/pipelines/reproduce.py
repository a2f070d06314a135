"""`influx reproduce`: run a study's jobs, and say claim by claim whether it reproduces.

The jobs are ordinary `influx validate` runs with folders of their own, which share trained and retrained models through the store. A job
that is finished, with the same settings and the same code, is not run again: a study that was stopped goes on where it was.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.console import Console

from influx.configuration import quoted
from influx.errors import InfluxError, NumericalError
from influx.report.page import StudyPage, page_of
from influx.report.saving import formats
from influx.report.tables import claim_lines, to_markdown
from influx.runfolder import RunFolder, source_digest
from influx.studies.claims import COLUMNS
from influx.studies.results import collect, over_seeds, state
from influx.studies.study import Job, Study

log = logging.getLogger("influx")

EVERY = 15.0  # seconds between two lines of progress
COUNTED = ("seed", "retraining.seeds")  # what a study counts itself
PROTOCOL = ("dtype", "threads", "checkpoints")  # keys that every command has and that a study's own settings decide

Launch = Callable[[Sequence[tuple[str, Sequence[str]]], Path, int], None]


@dataclass(frozen=True)
class Request:
    """What was asked: the studies, the scale, the user's own settings, those of all jobs (`more`), and how to run jobs
    (`launch(jobs, folder, workers)`)."""

    studies: tuple[Study, ...]
    scale: str
    seeds: int | None
    first_seed: int
    more: tuple[str, ...]
    own: tuple[str, ...]
    jobs_dir: Path
    fresh: bool
    workers: int
    launch: Launch

    def command(self, study: str) -> str:
        """What repeats one of its studies."""
        words = [f"study={study}", f"scale={self.scale}"]
        words += [f"seeds={self.seeds}"] if self.seeds else []
        words += [f"seed={self.first_seed}"] if self.first_seed else []
        words += [f'"settings=[{", ".join(map(repr, self.own))}]"'] if self.own else []
        return " ".join(["influx reproduce", *words])


def run(studies: tuple[Study, ...], config: Mapping[str, Any], path: Path, overrides: list[str], launch: Launch, cores: int) -> None:
    """Open the run folder `path`, reproduce, and close its record.

    Raises:
        InfluxError: a setting that a study decides was set for all of them, or the input is wrong.
    """
    _refuse_protocol(overrides, config["settings"])
    place = config["store"].get("dir")
    store = quoted(str(Path(place).resolve())) if place else "null"
    more = (*config["settings"], "pictures=false", f"device={config['device']}", f"store.dir={store}")
    workers = cores if config["workers"] == "auto" else config["workers"]
    request = Request(
        studies, config["scale"], config["seeds"], config["seed"], more, tuple(config["settings"]), Path(config["jobs_dir"]),
        config["fresh"], workers, launch,
    )  # fmt: skip
    folder = RunFolder(path)
    folder.start("reproduce", config, overrides)
    try:
        with formats(config.get("pictures")):
            reproduce(request, folder)
        folder.record["status"] = "finished"
        log.info("results: %s", path)
    except BaseException as error:
        folder.record["status"] = f"failed: {error}" if isinstance(error, InfluxError) else f"failed: {type(error).__name__}"
        raise
    finally:
        folder.write_record()


def _refuse_protocol(overrides: Sequence[str], settings: Sequence[str]) -> None:
    for word in overrides:
        key = word.lstrip("+").partition("=")[0]
        if key in PROTOCOL:
            raise InfluxError(f"a study's protocol decides {key}: to set it for every job all the same, write settings=['{word}'].")
    for word in settings:
        key = word.lstrip("+").partition("=")[0]
        if key in COUNTED:
            raise InfluxError(f"settings=['{word}'] would give every job the same {key}: use seed=<the first> and seeds=<how many>.")


def reproduce(request: Request, folder: RunFolder) -> None:
    """Run every study of the request; claims, figures and page are written after each, so that what is done can be looked at.

    Raises:
        NumericalError: some jobs have failed; everything that the others gave is written.
    """
    pages: list[StudyPage] = []
    for study in request.studies:
        with folder.stage(study.name):
            results, failed = _run(study, request)
            pages.append(_judged(study, results, failed, request, folder))
        _write(folder, pages)
        _say(pages[-1])
    log.info("page: %s", folder.path / "report.html")
    lost = [f"{page.name}/{place} {reason}" for page in pages for place, reason in page.failed]
    folder.record["failed_jobs"] = lost
    if lost:
        raise NumericalError(
            f"{len(lost)} jobs have no result, and claims that need them stay open; the same command tries them again. The first: {lost[0]}"
        )


def _judged(study: Study, results: pd.DataFrame, failed: Mapping[str, str], request: Request, folder: RunFolder) -> StudyPage:
    """Write a study's tables and figure, and give what its part of the page needs."""
    place = f"{study.name}/" if len(request.studies) > 1 else ""
    scale = study.scales[request.scale]
    seeds = request.seeds or scale.seeds
    rows, cells = zip(*(claim.judge(results, seeds) for claim in study.claims), strict=True)
    claims = pd.DataFrame(rows, columns=COLUMNS)
    folder.csv(f"{place}results.csv", results)
    folder.csv(f"{place}cells.csv", pd.DataFrame([row for part in cells for row in part]))
    if place:
        folder.csv(f"{place}claims.csv", claims)
        folder.text(f"{place}claims.md", f"# {study.title}\n\n{to_markdown(claims)}")
    labels = {arm.name: arm.label for arm in study.arms.values()} | {name: name.replace("_", " ") for name in study.compare}
    picture = folder.path / place / f"{study.name}.png"
    study.figure.save(over_seeds(results), results, labels, picture)
    return StudyPage(
        study.name, study.title, study.papers, study.shows, request.scale, scale.cuts, claims, picture, tuple(failed.items()),
        request.command(study.name), seeds, request.own,
    )  # fmt: skip


def _run(study: Study, request: Request) -> tuple[pd.DataFrame, dict[str, str]]:
    jobs = study.jobs(request.scale, seeds=request.seeds, first_seed=request.first_seed, more=request.more)
    folder = (request.jobs_dir / study.name / request.scale).resolve()
    waiting = [job for job in jobs if request.fresh or not is_done(job, folder / job.place)]
    chosen = study.scales[request.scale]
    log.info("%s: %s", study.name, study.title)
    log.info("%s scale: %s", request.scale, chosen.cuts)
    log.info("%d jobs, %d of them to run; %s on two cores when nothing is in the store", len(jobs), len(waiting), chosen.takes)
    if waiting:
        with _watched(study.name, waiting, folder):
            _launch(request, waiting, folder)
    return collect(study, jobs, folder)


def _launch(request: Request, jobs: Sequence[Job], folder: Path) -> None:
    """Run the jobs; what ends the launcher itself, such as a worker that the system killed, ends no study: its jobs are counted as lost."""
    try:
        request.launch([(job.place, job.settings) for job in jobs], folder, min(request.workers, len(jobs)))
    except InfluxError:
        raise
    except Exception as error:
        log.warning("warning: the jobs' processes ended early (%s: %s); workers=1 runs them here.", type(error).__name__, error)


def is_done(job: Job, folder: Path) -> bool:
    """Whether the job's folder holds a finished run of the same settings by the same code."""
    if state(folder) != "finished":
        return False
    try:
        said = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
        record = RunFolder.read(folder)
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return said == list(job.settings) and record.get("source") == source_digest()


class _watched:
    """Says now and then, while jobs run anywhere, how many of them have ended."""

    def __init__(self, name: str, jobs: Sequence[Job], folder: Path) -> None:
        self._name, self._jobs, self._folder = name, jobs, folder
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._begun = time.time()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            ended = sum(self._ended(job) for job in self._jobs)
            gone = time.time() - self._begun
            left = f", about {gone / ended * (len(self._jobs) - ended):.0f} s left" if ended else ""
            print(f"{self._name}: {ended} of {len(self._jobs)} jobs after {gone:.0f} s{left}", file=sys.stderr, flush=True)

    def _ended(self, job: Job) -> bool:
        record = self._folder / job.place / "run.json"
        return record.is_file() and record.stat().st_mtime >= self._begun and state(record.parent) != "failed: it was stopped"


def _write(folder: RunFolder, pages: Sequence[StudyPage]) -> None:
    joined = pd.concat([page.claims.assign(study=page.name) for page in pages], ignore_index=True)
    folder.csv("claims.csv", joined)
    folder.text("claims.md", to_markdown(joined))
    folder.text("report.html", page_of(pages))


def _say(page: StudyPage) -> None:
    screen = Console(width=120, file=io.StringIO())
    screen.print(claim_lines(page.claims, page.title))
    log.info("%s", screen.file.getvalue().rstrip())  # type: ignore[attr-defined]
    for row in page.claims.itertuples():
        if row.explanation:
            log.info("%s %s: %s", row.claim, row.verdict, row.explanation)


def chosen_studies(
    node: Mapping[str, Any] | None, name: str | None, every: Sequence[str], load: Callable[[str], Mapping[str, Any]]
) -> tuple[Study, ...]:
    """The study `name` that `node` describes, or all of `every` when it says so, but for those that need what is not installed.

    Raises:
        InfluxError: none was chosen, a file describes no study, or the one that was chosen needs what is not installed.
    """
    if node is None or name is None:
        raise InfluxError(f"choose a study: study=<name>, one of {', '.join(every)}; influx reproduce alone describes them.")
    if not node.get("all"):
        study = Study.read(name, node)
        if study.needs.missing:
            raise InfluxError(f"study={name} {study.needs.missing}.")
        return (study,)
    studies = [Study.read(one, load(one)) for one in every if one != name]
    for study in studies:
        if study.needs.missing:
            log.warning("left out: study=%s %s", study.name, study.needs.missing)
    return tuple(study for study in studies if not study.needs.missing)
