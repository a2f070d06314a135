"""The notebook of `examples/`: as it lies there it was run from top to bottom, and it runs again."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "reading_runs.ipynb"
ABSENT = [name for name in ("nbclient", "nbformat", "ipykernel") if importlib.util.find_spec(name) is None]


def code_cells() -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_it_was_run_from_top_to_bottom() -> None:
    assert [cell["execution_count"] for cell in code_cells()] == [*range(1, len(code_cells()) + 1)]
    assert all(cell["outputs"] for cell in code_cells())
    assert not [out for cell in code_cells() for out in cell["outputs"] if out["output_type"] == "error"]


def test_it_is_small_and_names_no_machine() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 300_000
    assert not re.findall(r"/(?:tmp|root|home|Users)/\w+", text)
    assert "\\u001b" not in text  # colours of a terminal


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.skipif(bool(ABSENT), reason=f"needs {', '.join(ABSENT)}")
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    (tmp_path / "influx").write_text(f'#!/bin/sh\nexec {sys.executable} -m influx "$@"\n')
    (tmp_path / "influx").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()  # raises where a cell fails
    again = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for kept, made in zip(code_cells(), again, strict=True):
        kinds = [sorted(out.get("data", {"stream": 0})) for out in kept["outputs"]]
        assert [sorted(out.get("data", {"stream": 0})) for out in made.outputs] == kinds, kept["source"]
