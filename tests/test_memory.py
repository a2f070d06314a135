"""Sizes as people write them, and how much memory a process took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Run

from influx.memory import Peak, parse, shown


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ("2GiB", 2**31),
        ("500MB", 5 * 10**8),
        ("500 MB", 5 * 10**8),
        (" 1.5 gib ", 3 * 2**29),
        ("1MiB", 2**20),
        ("2TiB", 2**41),
        ("1.1TB", 1_100_000_000_000),
        ("4096KiB", 2**22),
        ("2097152", 2**21),
        ("2097152B", 2**21),
        (2**21, 2**21),
    ],
)
def test_a_size_is_what_it_says(size, wanted):
    assert parse(size) == wanted


@pytest.mark.parametrize("size", ["", "GiB", "2 giga", "-2GiB", "2GiB!", "1e9", "inf", "nan", True, None, "2 GiB 3"])
def test_what_is_no_size(size):
    with pytest.raises(ValueError, match="is no size"):
        parse(size)


@pytest.mark.parametrize("size", ["1023KiB", "0GiB", "0.5MB", 1000, "1048575"])
def test_less_than_a_mebibyte_is_a_slip(size):
    with pytest.raises(ValueError, match="is less than 1MiB"):
        parse(size)


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 KiB"), (1536, "1.5 KiB"), (2**20, "1 MiB"), (1.25 * 2**20, "1.25 MiB"), (2**30, "1 GiB"), (20.12 * 2**30, "20.1 GiB")],
)
def test_bytes_as_one_would_say_them(number, said):
    assert shown(number) == said


PEAK = """
import torch
from influx.memory import Peak
before = torch.ones(48 * 2**20, dtype=torch.uint8); del before  # 48 MiB, before anyone looks
peak = Peak(cuda=False)
start = peak.nbytes()
held = torch.ones({mebibytes} * 2**20, dtype=torch.uint8); del held
print(start, peak.nbytes())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's high-water mark")
def test_the_peak_is_what_was_held_at_once_although_it_is_free_again():
    done = subprocess.run([sys.executable, "-c", PEAK.format(mebibytes=96)], capture_output=True, text=True, check=True)
    start, after = map(int, done.stdout.split())
    assert 88 * 2**20 < after - start < 112 * 2**20  # the allocation, give or take what else the interpreter does


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_peak_on_a_cuda_device_is_torchs_own():
    peak = Peak(cuda=True)
    held = torch.ones(32 * 2**20, dtype=torch.uint8, device="cuda")
    del held
    assert 32 * 2**20 <= peak.nbytes() < 64 * 2**20 + torch.cuda.memory_allocated()


def test_a_run_says_what_memory_it_took(estimated):
    cost = json.loads((estimated.folder / "run.json").read_text())["cost"]
    assert set(cost) == {"forecast_seconds", "gradients", "flops", "trainings", "nbytes", "peak_bytes"}
    assert 2**25 < cost["peak_bytes"] < 2**36  # an interpreter with torch, and less than a machine
    assert 0 < cost["forecast_seconds"] < 600
    assert f"its arrays take about {shown(cost['nbytes'])}, of 2GiB allowed" in estimated.out
    assert f"the process's memory peaked at {shown(cost['peak_bytes'])}" in estimated.out


@pytest.mark.parametrize("line", [("method=exact",), ("method=exact", "method.curvature=fisher")])
def test_less_memory_gives_the_same_estimate(tiny: Run, tmp_path: Path, line: tuple[str, ...]):
    """3 x 650² doubles are 9.7 MiB: 10MiB takes the test examples in blocks."""
    import numpy as np

    found = []
    for size in ("2GiB", "10MiB"):
        ran = tiny("estimate", "model=logistic", *line, f"memory={size}", "dataset.test_size=300")
        assert ran.status == 0, ran.err
        found.append(np.load(ran.folder / "influence.npz")["influence"])
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-12 * np.abs(found[0]).max())  # products of other shapes
    ran = tiny("estimate", "model=logistic", *line, "memory=9MiB")
    assert ran.status == 2
    assert "method=exact works on a 650 x 650 matrix" in ran.err
