"""The machine as influx will use it: cores and threads, memory, devices, and the places that it reads and writes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from influx import memory, storekeeping
from influx.configuration import conf_dir
from influx.errors import InfluxError
from influx.finding import BROKEN, NOTE, Finding

LITTLE = 2**30  # bytes free on a disk below which retraining may not fit


def cores() -> Iterator[Finding]:
    """Cores that this process may use, and threads for one model."""
    import joblib

    from influx.pipelines.session import ALL_CORES, LARGE_MODEL

    physical, logical = joblib.cpu_count(only_physical_cores=True), joblib.cpu_count()
    yield Finding("cores", f"{physical} physical, {logical} logical, that this process may use")
    wanted = os.environ.get("OMP_NUM_THREADS")
    said = f"1 for small models, {ALL_CORES} from {LARGE_MODEL:,} parameters on or with convolutions (threads=auto"
    said += f"; OMP_NUM_THREADS={wanted})" if wanted else "; OMP_NUM_THREADS is not set)"
    if logical < ALL_CORES:
        remedy = f"set OMP_NUM_THREADS={physical}, or threads={physical}"
        yield Finding("threads", f"{said}, more than there are cores", NOTE, remedy)
    else:
        yield Finding("threads", said)


def random_access_memory() -> Iterator[Finding]:
    """Memory of the machine, where the system says it as Linux does."""
    table = Path("/proc/meminfo")
    if table.is_file():
        lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
        total, free = (int(lines[name].split()[0]) * 2**10 for name in ("MemTotal", "MemAvailable"))
        yield Finding("memory", f"{memory.shown(total)}, {memory.shown(free)} free (an estimate may use memory=2GiB unless told otherwise)")


def devices() -> Iterator[Finding]:
    """CUDA devices; each is asked for one number."""
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch is built for CUDA {built} and sees no device" if built else "torch is built without CUDA"
        yield Finding("device", f"cpu ({why})", NOTE if built else "ok", "look at nvidia-smi: the driver may be too old" if built else "")
        return
    for number in range(torch.cuda.device_count()):
        name, where = torch.cuda.get_device_name(number), f"cuda:{number}"
        try:
            torch.zeros(1, device=where).item()
            free, total = torch.cuda.mem_get_info(number)
        except RuntimeError as error:
            remedy = "use device=cpu, or a torch that is built for this device"
            yield Finding(where, f"{name} does not compute ({str(error).splitlines()[0]})", BROKEN, remedy)
            continue
        yield Finding(where, f"{name}, {memory.shown(total)}, {memory.shown(free)} free")


def places(store: Path) -> Iterator[Finding]:
    """Where the configuration, the results and the store are."""
    try:
        yield Finding("configuration", str(conf_dir()))
    except InfluxError as error:
        yield Finding("configuration", str(error), BROKEN, "pip install --force-reinstall influx")
    yield _writable("results", Path("outputs"), "go to another folder, or choose one with hydra.run.dir=...")
    remedy = "choose another with store.dir=..., or store.dir=null to keep nothing"
    found = storekeeping.entries(store) if store.is_dir() and os.access(store, os.R_OK | os.X_OK) else []
    size = sum(entry.size for entry in found)
    finding = _writable("store", store, remedy)
    said = f"{len(found)} results, {memory.shown(size)}" if found else "empty"
    yield Finding("store", f"{finding.said}, {said}", finding.state, finding.remedy)
    free = shutil.disk_usage(_there(store)).free
    said = f"{memory.shown(free)} free where the store is"
    yield Finding("disk", said, NOTE, "influx store remove older_than=7d frees some") if free < LITTLE else Finding("disk", said)


def _there(place: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    place = place.absolute()
    return next(one for one in (place, *place.parents) if one.exists())


def _writable(name: str, place: Path, remedy: str) -> Finding:
    """Tried with a file that has no name, in the folder or where it would be made."""
    there = _there(place)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Finding(name, f"{place.absolute()} cannot be written ({error.strerror})", BROKEN, remedy)
    return Finding(name, str(place.absolute()) + ("" if place.exists() else " (made when it is needed)"))
