"""`influx doctor`: what is installed, what influx will use of this machine, and whether it computes what it should."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from influx import storekeeping
from influx.errors import InfluxError
from influx.finding import BROKEN, FINE, NOTE, OFF, Finding
from influx.plain_settings import settings
from influx.rule_kinds import FLAG, Rule

USAGE = """influx doctor: does influx work here?

usage: influx doctor [key=value ...]

It looks at versions, extras, cores, devices, folders and tab completion, and runs one small check. Nothing is changed.
Each line is ok, note (it works, and could be better), off (an extra that is not installed) or broken, with what to do.
The exit status is 1 when something is broken.

settings
  store.dir=PATH      the store (outputs/store)
  self_check=false    leave out the check, which takes a second
"""

RULES: dict[str, Rule] = {
    "store.dir": storekeeping.RULES["store.dir"],
    "self_check": FLAG,
}
WIDTH = 21  # of names
WORDS = ("store.dir=", "self_check=true", "self_check=false")  # what the shell can complete
COLOURS = {FINE: "green", NOTE: "yellow", OFF: "dim", BROKEN: "bold red"}


def command(words: Sequence[str]) -> int:
    """`influx doctor WORDS`; the exit status: 0 fine, 1 something is broken.

    Raises:
        InfluxError: a word, key or value that is not possible.
    """
    if {"-h", "--help"} & {*words}:
        print(USAGE, end="")
        return 0
    for word in words:
        if "=" not in word:
            raise InfluxError(f"influx doctor has no '{word}'; it has {', '.join(f'{key}=' for key in RULES)}.")
    chosen = settings(words, RULES)
    return _examine(Path(chosen.get("store.dir", storekeeping.DEFAULT)), chosen.get("self_check", True))


def _examine(store: Path, whole: bool) -> int:
    found: list[Finding] = []
    for heading, look in _sections(store, whole):
        print(f"\n{heading}" if found else heading)
        for finding in _guarded(heading, look):
            found.append(finding)
            _show(finding)
    return _verdict(found)


def _sections(store: Path, whole: bool) -> Iterator[tuple[str, Callable[[], Iterable[Finding]]]]:
    """Imported one by one: a package that cannot be imported is a finding, not the end."""

    def installed() -> Iterator[Finding]:
        from influx import installation

        yield from installation.packages()
        yield installation.native_library()

    def extras() -> Iterator[Finding]:
        from influx import installation

        yield from installation.extras()

    def machine() -> Iterator[Finding]:
        from influx import machine

        yield from (*machine.cores(), *machine.random_access_memory(), *machine.devices())

    def places() -> Iterator[Finding]:
        from influx import installation, machine

        yield from (*machine.places(store), *installation.shell())

    def check() -> Iterator[Finding]:
        from influx.self_check import self_check

        yield from self_check()

    yield from (("packages", installed), ("extras", extras), ("machine", machine), ("places and shell", places))
    if whole:
        yield "self-check", check


def _guarded(heading: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except Exception as error:  # whatever a broken installation raises
        said = (str(error).strip() or "no reason given").splitlines()[0]
        said = f"cannot be looked at ({type(error).__name__}: {said})"
        yield Finding(heading, said, BROKEN, "pip install --force-reinstall what it names")


def _show(finding: Finding) -> None:
    """A coloured line on a terminal, a plain one elsewhere."""
    advice = f"\n{'':<{WIDTH + 11}}-> {finding.remedy}" if finding.remedy else ""
    rest = f"{finding.name:<{WIDTH}} {finding.said}{advice}"
    if sys.stdout.isatty():
        line = Text.assemble("  ", (f"{finding.state:<7}", COLOURS[finding.state]), " ", rest)
        Console(highlight=False, soft_wrap=True).print(line)
    else:
        print(f"  {finding.state:<7} {rest}", flush=True)


def _verdict(found: Sequence[Finding]) -> int:
    broken = [finding.name for finding in found if finding.state == BROKEN]
    notes = sum(finding.state == NOTE for finding in found)
    fine = f"influx works here, with {notes} note{'s' * (notes > 1)}" if notes else "influx works here"
    print(f"\nbroken: {', '.join(broken)}" if broken else f"\n{fine}")
    return 1 if broken else 0
