"""What is installed: versions against what influx asks for, its extras, torchvision's native library, the command and its completion."""

from __future__ import annotations

import os
import platform
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import Requirement

from influx.finding import BROKEN, NOTE, OFF, Finding

PACKAGE = Path(__file__).parent
START_UP = {  # where a shell finds its completions: files that are read, and folders of ready ones
    "bash": ("~/.bashrc", "~/.bash_profile", "~/.profile", "~/.bash_completion", "~/.local/share/bash-completion/completions/influx"),
    "zsh": ("~/.zshrc", "~/.zprofile", "~/.zshenv"),
    "fish": ("~/.config/fish/config.fish", "~/.config/fish/completions/influx.fish", "~/.config/fish/conf.d/influx.fish"),
}
INSTALL = {
    "bash": """echo 'eval "$(influx -sc install=bash)"' >> ~/.bashrc""",
    "zsh": """echo 'eval "$(influx -sc install=zsh)"' >> ~/.zshrc""",
    "fish": "influx -sc install=fish > ~/.config/fish/completions/influx.fish",
}


@dataclass(frozen=True)
class Wanted:
    """What influx asks for: of everyone, and for each extra."""

    core: tuple[Requirement, ...]
    extras: Mapping[str, tuple[Requirement, ...]]


def wanted() -> Wanted:
    """From a checkout's pyproject.toml, which an old installation of it may not know yet, else from the installed metadata."""
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file():
        said = tomllib.loads(project.read_text())["project"]
        core, extras = said["dependencies"], said["optional-dependencies"]
        return Wanted(tuple(map(Requirement, core)), {name: tuple(map(Requirement, listed)) for name, listed in extras.items()})
    listed = [Requirement(line) for line in requires("influx") or ()]
    names = metadata("influx").get_all("Provides-Extra") or []
    return Wanted(
        tuple(one for one in listed if _applies(one, "")),
        {name: tuple(one for one in listed if not _applies(one, "") and _applies(one, name)) for name in names},
    )


def _applies(requirement: Requirement, extra: str) -> bool:
    if requirement.marker is None:
        return True
    try:
        return requirement.marker.evaluate({"extra": extra})
    except UndefinedEnvironmentName:
        return False


def packages() -> Iterator[Finding]:
    """Python, influx, and each package that everyone needs."""
    yield Finding("python", platform.python_version())
    yield Finding("influx", f"{version('influx')} in {PACKAGE}")
    for one in wanted().core:
        trouble, found = _trouble(one), _version(one.name)
        said = found or "missing"
        yield (
            Finding(one.name, f"{said} ({one.specifier} is needed)", BROKEN, f"pip install '{one}'") if trouble else Finding(one.name, said)
        )


def extras() -> Iterator[Finding]:
    """Each extra: there, or what it lacks and the line that installs it."""
    for name, listed in wanted().extras.items():
        missing = [one.name for one in listed if _trouble(one)]
        if missing:
            yield Finding(name, f"needs {', '.join(missing)}", OFF, f"pip install 'influx[{name}]'")
        else:
            yield Finding(name, ", ".join(f"{one.name} {_version(one.name)}" for one in listed))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _trouble(requirement: Requirement) -> bool:
    """Whether a package is missing or of a version that is not asked for; one that another system does not need is no trouble."""
    if requirement.marker is not None and "extra" not in str(requirement.marker) and not requirement.marker.evaluate():
        return False
    found = _version(requirement.name)
    return found is None or not requirement.specifier.contains(found, prereleases=True)


def native_library() -> Finding:
    """Whether torchvision's compiled part fits this torch."""
    from influx.vision import native_library_loads

    if native_library_loads():
        return Finding("native library", "torchvision's loads")
    return Finding(
        "native library", "torchvision's does not fit this torch; influx reads data sets and builds models without it", NOTE,
        "install torch and torchvision from one index to have torchvision's own operators too",
    )  # fmt: skip


def shell() -> Iterator[Finding]:
    """Whether the command is found, and whether TAB completes it."""
    place = shutil.which("influx")
    if place is None:
        yield Finding("command", "influx is not on PATH", NOTE, "activate its environment; python -m influx works too")
    else:
        yield Finding("command", place)
    name = Path(os.environ.get("SHELL", "")).name
    if name not in START_UP:
        yield Finding("completion", f"the shell {name or '($SHELL is not set)'} is none of {', '.join(START_UP)}", NOTE)
        return
    files = [Path(file).expanduser() for file in START_UP[name]]
    found = [file for file in files if file.is_file() and f"influx -sc install={name}" in _text(file)]
    found += [file for file in files if file.is_file() and "influx" in file.name]
    if found:
        yield Finding("completion", f"set up for {name} in {found[0]}")
    else:
        yield Finding("completion", f"not set up for {name}", NOTE, INSTALL[name])


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
