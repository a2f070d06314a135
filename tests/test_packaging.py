"""The package as it is shipped: sdist, then wheel, then an environment that has never seen the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import TINY

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel made from an sdist, offline."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(out.glob("influx-*.tar.gz"))
    (made,) = out.glob("influx-*-py3-none-any.whl")
    return made


def test_the_wheel_has_every_module_setting_and_data_file(wheel: Path) -> None:
    shipped = set(zipfile.ZipFile(wheel).namelist())
    kinds = (".py", ".csv", ".css", ".js")
    modules = {str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / "influx").rglob("*") if file.suffix in kinds}
    modules |= {f"hydra_plugins/{file.name}" for file in (REPOSITORY / "hydra_plugins").glob("*.py")}
    settings = {f"influx/{file.relative_to(REPOSITORY)}" for file in (REPOSITORY / "conf").rglob("*.yaml")}
    assert "influx/datasets/concrete.csv" in modules
    assert "influx/conf/method/exact.yaml" in settings
    assert {name for name in shipped if not name.startswith("influx-")} == modules | settings
    assert any(name.endswith("/licenses/LICENSE") for name in shipped)


def test_the_wheel_finds_its_own_settings(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    for question, said in (
        (["--cfg", "job"], "influx.solvers.exact.Exact"),
        (["--info", "searchpath"], f"file://{tmp_path}/site/influx/conf"),
    ):
        command = [sys.executable, "-m", "influx", "validate", "method=exact", *question]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert said in done.stdout, done.stderr


@pytest.mark.slow
def test_an_installed_wheel_runs_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    site = subprocess.run([python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True, check=True)
    libraries = Path(site.stdout.strip(), "libraries.pth")  # what we depend on, without the .pth of our own editable install
    libraries.write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet", str(wheel)]
    subprocess.run(install, check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [tmp_path / "venv/bin/influx", "validate", "dataset=concrete", "model=mlp", *TINY["validate"]]
    done = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = (elsewhere / "outputs/validate/runs").iterdir()
    settings = yaml.safe_load((folder / ".hydra/hydra.yaml").read_text())["hydra"]["runtime"]["config_sources"]
    assert str(tmp_path / "venv") in next(source["path"] for source in settings if source["provider"] == "main")
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
