"""What `influx reproduce` alone shows: the studies, from their YAML files, before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table


def print_studies() -> int:
    """One row a study of `conf/study/`: its name, papers, what it shows, its claims, and the time it takes here at each scale."""
    from influx.app import conf_dir

    table = Table(title="influx reproduce study=<name> [scale=quick|paper]", title_justify="left", show_lines=True)
    for heading in ("study", "from", "what it shows", "claims", "quick", "paper"):
        table.add_column(heading, no_wrap=heading in ("study", "quick"))
    for file in sorted((conf_dir() / "study").glob("*.yaml")):
        table.add_row(*_row(file))
    console = Console()
    console.print(table, width=max(console.width, 110) if not console.is_terminal else None)
    console.print("quick ends in minutes on two cores and says what it cuts; paper is the full protocol. study=all runs them all.")
    return 0


def _row(file: Path) -> tuple[str, ...]:
    said = yaml.safe_load(file.read_text())
    if said.get("all"):
        return file.stem, "", file.read_text().partition("\n")[0].lstrip("# "), "", "", ""
    claims = ", ".join(dict.fromkeys(str(claim["claim"]) for claim in said["claims"]))
    times = [said["scales"][scale]["takes"] for scale in ("quick", "paper")]
    return file.stem, "; ".join(said["papers"]), said["shows"], claims, *times
