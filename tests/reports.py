"""Finished runs to report on, and a parser for the page that is made of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from conftest import TINY, call

IRIS = ("dataset=iris", "training.epochs=3", "dataset.train_size=40", "dataset.test_size=8")
TRUTH = ("retraining.removed=6", "retraining.seeds=2", "resamples=50", "hydra.sweep.dir=sweep", "pictures=false")
JOBS = ("method=exact,random,nosuch", "seed=0,4")
VOID = {"meta", "link", "br", "img", "input", "hr"}


def make_runs(folder: Path) -> dict[str, Path]:
    """A sweep of six jobs of which two were refused, a run on images, a training, and a run that was stopped."""
    assert call("validate", "-m", *JOBS, *IRIS, *TRUTH, cwd=folder).status == 2
    assert call("validate", *TINY["validate"], "dataset.label_noise=0", "hydra.run.dir=digits", cwd=folder).status == 0
    assert call("train", *IRIS, "hydra.run.dir=train", cwd=folder).status == 0
    stopped = folder / "stopped"
    shutil.copytree(folder / "train", stopped)
    record = json.loads((stopped / "run.json").read_text()) | {"status": "running"}
    (stopped / "run.json").write_text(json.dumps(record))
    return {name: folder / name for name in ("sweep", "digits", "train", "stopped")}


@dataclass
class Element:
    """A piece of a page: its tag, attributes, and what is in it."""

    tag: str
    attrs: dict[str, str] = field(default_factory=dict)
    inside: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text for part in self.inside)

    def all(self, *tags: str) -> list[Element]:
        """Every element below with one of the tags (any tag, when none is named), in the page's order."""
        found = []
        for part in self.inside:
            if isinstance(part, Element):
                found += [part] * (not tags or part.tag in tags) + part.all(*tags)
        return found

    def by_id(self, name: str) -> Element:
        (found,) = [one for one in self.all() if one.attrs.get("id") == name]
        return found


class Parser(HTMLParser):
    """Builds the tree, and refuses a tag that is closed out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Element("")
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inside.append(made)
        if tag not in VOID:
            self.open.append(made)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(data)


def parsed(page: Path) -> Element:
    parser = Parser()
    parser.feed(page.read_text())
    parser.close()
    assert parser.open == [parser.root], "a tag is left open"
    return parser.root


def data_of(page: Path) -> dict[str, Any]:
    """What the page's script reads."""
    return json.loads(parsed(page).by_id("report-data").text)


def cells(page: Element, table: str) -> list[dict[str, str]]:
    """A table's rows: by heading, the whole number where there is one, else the text."""
    part = page.by_id(table)
    heads = [one.text for one in part.all("th")]
    rows = [row.all("td") for row in part.all("tbody")[0].all("tr")]
    return [{head: cell.attrs.get("data-value", cell.text) for head, cell in zip(heads, row, strict=True)} for row in rows]
