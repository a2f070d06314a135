"""Tab completion: commands, and their own words, here; groups, options and keys by Hydra, which knows nothing of commands.

The shell calls `influx -sc query=SHELL` with the typed line in COMP_LINE and the cursor's place in COMP_POINT.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from influx.errors import InfluxError
from influx.flags import flags_first
from influx.rules import RULES

FLAGS = ("--help", "--cfg", "--multirun", "--config-dir", "--info", "--resolve")
ZSH = """(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
(( $+functions[complete] )) || { autoload -Uz bashcompinit && bashcompinit; }
"""  # what Hydra's script for bash needs in zsh

Hydra = Callable[[str, list[str]], int]  # app.launch


def complete(arguments: list[str], commands: Sequence[str], own: Mapping[str, Callable[[], Sequence[str]]], hydra: Hydra) -> int:
    """Print what the shell should offer, or the script that installs completion. `own` are the words of commands that Hydra does not run;
    one that has none takes folders, which the shell offers itself.

    Raises:
        InfluxError: it is not said what is wanted.
    """
    if not any("=" in word for word in arguments):
        raise InfluxError("say which completion: influx -sc install=bash, install=zsh or install=fish.")
    if not any(word.startswith("query=") for word in arguments):  # install or uninstall
        if "install=zsh" in arguments:
            print(ZSH, end="")
        return hydra("validate", arguments)
    line = os.environ.get("COMP_LINE", "")
    line = line[: int(os.environ.get("COMP_POINT") or len(line))]
    words = line.split()
    if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
        offered: Sequence[str] = commands
    elif words[1] in own:
        offered = own[words[1]]()
    elif words[1] not in commands:
        offered = ()
    else:
        offered = _of_hydra(line, words[1], arguments, hydra)
    if offered:
        print("\n".join(offered))  # fish wants one a line, bash takes any white space
    return 0


def _of_hydra(line: str, command: str, arguments: list[str], hydra: Hydra) -> Sequence[str]:
    """Flags, the words that a key's rule has, or what Hydra offers: for the last of several values as for the first."""
    last = "" if line.endswith(" ") else line.split()[-1]
    if last.startswith("-"):
        return FLAGS
    key, equals, value = last.partition("=")
    before, comma, _ = value.rpartition(",")
    rule = RULES.get(key)
    if equals and rule is not None:
        possible = [*(("true", "false") if rule.accepts(True) else ()), *rule.choices]
        if possible:
            return [f"{key}={before}{comma}{one}" for one in possible]
    words = line.split()
    before_last = flags_first(words[2 : len(words) - bool(last)])
    asked = f"{key}={value.rpartition(',')[2]}" if comma else last
    with (
        _line(" ".join([words[0], *before_last, asked])),
        contextlib.redirect_stdout(io.StringIO()) as said,
        contextlib.redirect_stderr(io.StringIO()),
    ):
        try:  # a half-typed line may be anything, and a shell that completes shows no errors
            hydra(command, arguments)
        except SystemExit:
            return ()
    offered = said.getvalue().split()
    return [one.replace("=", f"={before},", 1) for one in offered] if comma else offered


@contextlib.contextmanager
def _line(line: str) -> Iterator[None]:
    """The typed line as Hydra is to see it."""
    kept = {name: os.environ.pop(name) for name in ("COMP_LINE", "COMP_POINT") if name in os.environ}
    os.environ["COMP_LINE"] = line
    try:
        yield
    finally:
        del os.environ["COMP_LINE"]
        os.environ.update(kept)
