"""The command line's first word. Nothing heavy is imported here, so that help and completion answer at once."""

from __future__ import annotations

import os
import sys

from influx.errors import InfluxError, nearest

COMMANDS = {
    "train": "train one model and save it with its training record",
    "estimate": "train (or reuse) a model, then estimate influence",
    "validate": "estimate, retrain without examples, compare: correlation tables and plots",
    "reproduce": "run a published study and print each claim's verdict",
    "report": "join finished runs into one table, figure and HTML page",
    "store": "list, check and remove stored results",
    "rerun": "repeat a finished run from its folder",
    "doctor": "does influx work here: versions, devices, folders, a self-check",
}

USAGE = """influx: can I trust this influence estimate?

usage: influx COMMAND [group=option ...] [key=value ...]

commands
{commands}

examples
  influx validate
  influx validate dataset=breast_cancer model=logistic method=exact retraining.removed=all
  influx validate -m method=exact,cg,lissa dataset=iris,digits seed=0,4

more
  influx COMMAND --help        groups, options and settings of a command
  influx COMMAND --cfg job     the configuration that would run
  influx --version
  eval "$(influx -sc install=bash)"    tab completion (zsh the same; fish: influx -sc install=fish | source)
  import influx; run = influx.load("outputs/...")    a finished run in a notebook: tables and labelled arrays
"""


def usage() -> str:
    return USAGE.format(commands="\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items()))


def main() -> int:
    """Exit status: 0 done, 1 something broke, 2 the input is wrong (one line says what, and what would be right)."""
    arguments = sys.argv[1:]
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if "--version" in arguments:
        from importlib.metadata import version

        print(f"influx {version('influx')}")
        return 0
    try:
        if first in ("-sc", "--shell-completion", "--shell_completion"):
            return _complete(arguments)
        if first not in COMMANDS:
            raise InfluxError(_unknown(first, arguments))
        return _run(first, arguments[1:])
    except InfluxError as error:
        print(f"influx: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has seen enough; nothing is left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("influx: interrupted.", file=sys.stderr)
        return 130


def _run(command: str, arguments: list[str]) -> int:
    if command == "reproduce" and not arguments:
        from influx import listing

        return listing.print_studies()
    if command == "store":
        from influx import storekeeping

        return storekeeping.command(arguments)
    if command == "report":
        from influx import reporting

        return reporting.command(arguments)
    if command == "doctor":
        from influx import doctor

        return doctor.command(arguments)
    from influx import app
    from influx.flags import flags_first

    if command == "rerun":
        return app.rerun([*arguments[:1], *flags_first(arguments[1:])])
    return app.launch(command, flags_first(arguments))


def _unknown(first: str, arguments: list[str]) -> str:
    later = [word for word in arguments if word in COMMANDS]
    if later:
        rest = " ".join(word for word in arguments if word != later[0])
        return f"the command comes first: influx {later[0]} {rest}"
    return f"there is no command '{first}'; the commands are {', '.join(COMMANDS)}.{nearest(first, COMMANDS)}"


def _complete(arguments: list[str]) -> int:
    from influx import app, completion

    own = {"store": _words_of_store, "doctor": _words_of_doctor, "rerun": tuple, "report": tuple}
    return completion.complete(arguments, tuple(COMMANDS), own, app.launch)


def _words_of_store() -> tuple[str, ...]:
    from influx import storekeeping

    return storekeeping.WORDS


def _words_of_doctor() -> tuple[str, ...]:
    from influx import doctor

    return doctor.WORDS
