"""What `influx reproduce` alone shows: the studies, from their YAML files, before anything heavy is imported."""

from __future__ import annotations

from typing import Any

import yaml
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from influx.configuration import conf_dir

WIDTH = 100  # of a log

ABOUT = """influx reproduce study=<name> [scale=quick|paper] [seeds=<count>]

quick ends in minutes on two cores and says what it cuts; paper is the full protocol. A study that was stopped goes on where it was."""


def print_studies() -> int:
    """For each study of `conf/study/` its name, papers, what it shows, its claims, and the time it takes on two cores at each scale."""
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(width=WIDTH, highlight=False)
    console.print(Text(ABOUT))
    for file in sorted((conf_dir() / "study").glob("*.yaml"), key=lambda file: (file.stem != "all", file.stem)):
        said: dict[str, Any] = yaml.safe_load(file.read_text())
        about = said.get("papers", [file.read_text().partition("\n")[0].lstrip("# ")])
        console.print(Text.assemble("\n", (file.stem, "bold"), f"  {'; '.join(about)}"))
        for line in _lines(said):
            console.print(Padding(Text(line), (0, 0, 0, 4)))
    return 0


def _lines(said: dict[str, Any]) -> list[str]:
    if said.get("all"):
        return []
    claims = ", ".join(dict.fromkeys(str(claim["claim"]) for claim in said["claims"]))
    times = ", ".join(f"{scale} {said['scales'][scale]['takes']}" for scale in ("quick", "paper"))
    return [said["shows"], f"claims {claims}; {times}"]
