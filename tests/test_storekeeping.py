"""`influx store`: what it lists, removes and verifies, and what it refuses."""

from __future__ import annotations

import multiprocessing
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Run

from influx import storekeeping
from influx.store import Store

REPOSITORY = Path(__file__).parents[1]
DAY = 86400.0
ENTRIES = [  # kind, seed, age in seconds, what for; the newest first
    ("model", 0, 0.0, "digits, Mlp, seed 0"),
    ("retrained", 1, 5 * 60.0, "digits, Mlp, seed 0, 50 removed"),
    ("retrained", 2, 3 * 3600.0, "iris, Logistic, seed 0, [bold]4[/bold] removed"),
    ("model", 3, 2 * DAY, "Iris, Logistic, seed 0"),
    ("retrained", 4, 20 * DAY, ""),
]


def path_of(store: Store, seed: int) -> Path:
    path = store.path(dict((seed, kind) for kind, seed, *_ in ENTRIES)[seed], {"seed": seed})
    assert path is not None
    return path


def id_of(store: Store, seed: int) -> str:
    return path_of(store, seed).stem[:10]


def left(store: Store) -> list[int]:
    return [seed for _, seed, *_ in ENTRIES if path_of(store, seed).exists()]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Five entries in the place where commands run in `tmp_path` keep them."""
    store = Store(tmp_path / "outputs/store")
    for kind, seed, age, about in ENTRIES:
        store.save(kind, {"seed": seed}, {"a": torch.zeros(250 * (seed + 1))}, about)
        os.utime(path_of(store, seed), (time.time() - age,) * 2)
    return store


@pytest.fixture
def run_store(run_influx: Run, tmp_path: Path) -> Run:
    """`run_store("verify")` runs `influx store verify` in `tmp_path`."""
    return lambda *words: run_influx("store", *words, cwd=tmp_path, pictures=True)


# ---------------------------------------------------------------------------------------------------------------- listing


def listed(out: str) -> list[str]:
    """The ids of a listing, in its order."""
    return re.findall(r"^([0-9a-f]{10})  ", out, re.MULTILINE)


def test_the_list_is_newest_first_with_a_total(store: Store, run_store: Run) -> None:
    ran = run_store()
    assert (ran.status, ran.err) == (0, "")
    heads, *lines, total = ran.out.splitlines()
    assert heads.split() == ["id", "kind", "size", "age", "what", "for"]
    cells = [re.split(r"\s{2,}", line) for line in lines]
    assert [row[0] for row in cells] == [id_of(store, seed) for seed in range(5)]
    assert [row[1] for row in cells] == [kind for kind, *_ in ENTRIES]
    assert [row[3] for row in cells] == ["<1m", "5m", "3h", "2d", "2w"]
    assert [row[4] for row in cells] == [*(about for *_, about in ENTRIES[:4]), "-"]
    size = sum(path_of(store, seed).stat().st_size for seed in range(5))
    assert total == f"5 entries ({size / 1000:.1f} kB) in outputs/store"


@pytest.mark.parametrize(
    ("filters", "chosen"),
    [
        (["kind=model"], [0, 3]),
        (["older_than=1m"], [1, 2, 3, 4]),
        (["older_than=4m"], [1, 2, 3, 4]),
        (["older_than=2.5h"], [2, 3, 4]),
        (["older_than=1d"], [3, 4]),
        (["older_than=2w"], [4]),
        (["about=iris"], [2, 3]),
        (["about=seed 0", "kind=retrained"], [1, 2]),
        (["about=iris", "older_than=1d", "kind=model"], [3]),
    ],
)
def test_filters_join_with_and_in_listing_and_in_removal(store: Store, run_store: Run, filters: list[str], chosen: list[int]) -> None:
    ids = [id_of(store, seed) for seed in chosen]
    shown = run_store(*filters)
    dry = run_store("remove", *filters, "dry_run=true")
    assert listed(shown.out) == listed(dry.out) == ids
    assert re.search(rf"^{len(ids)} entr(y|ies) \(\d.*B\) of 5 entries \(.*\) in outputs/store$", shown.out, re.MULTILINE)
    assert re.search(rf"^would remove {len(ids)} entr.* from outputs/store; nothing is removed$", dry.out, re.MULTILINE)
    assert left(store) == [0, 1, 2, 3, 4]
    size = sum(path_of(store, seed).stat().st_size for seed in chosen)
    gone = run_store("remove", *filters)
    entries = "1 entry" if len(ids) == 1 else f"{len(ids)} entries"
    assert (gone.status, gone.out) == (0, f"removed {entries} ({size / 1000:.1f} kB) from outputs/store\n")
    assert left(store) == [seed for seed in range(5) if seed not in chosen]


def test_an_id_may_be_its_first_digits(store: Store, run_store: Run) -> None:
    assert listed(run_store(f"id={path_of(store, 2).stem}").out) == [id_of(store, 2)]
    assert run_store("remove", f"id={id_of(store, 2)}").status == 0
    assert left(store) == [0, 1, 3, 4]


def test_a_long_list_shows_the_newest_and_says_how_many_more(store: Store, run_store: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storekeeping, "NEWEST", 3)
    ran = run_store()
    assert listed(ran.out) == [id_of(store, seed) for seed in range(3)]
    assert ran.out.splitlines()[-2] == "... and 2 older; all=true shows them too"
    assert len(listed(run_store("all=true").out)) == 5
    assert len(listed(run_store("remove", "everything=true", "dry_run=true").out)) == 3


def test_the_list_is_a_table_on_a_terminal(store: Store, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    done = subprocess.run([sys.executable, "-m", "influx", "store"], cwd=tmp_path, stdout=theirs, env=env, check=True)
    said = os.read(ours, 100_000).decode()
    assert done.returncode == 0
    assert re.search(rf"│ {id_of(store, 2)} │ retrained │ .* │  3h │ iris, Logistic, seed 0, \[bold\]4\[/bold\] removed *│", said)
    assert "5 entries" in said


def test_a_damaged_header_is_listed_without_what_it_is_for(store: Store, run_store: Run) -> None:
    path_of(store, 0).write_bytes(b"\xff" * 20)
    path_of(store, 1).write_bytes(b"")
    assert len(listed(run_store().out)) == 5
    assert len(listed(run_store("about=digits").out)) == 0


@pytest.mark.parametrize("words", [(), ("verify",), ("remove", "kind=model"), ("remove", "everything=true"), ("kind=model", "id=3")])
@pytest.mark.parametrize("there", [True, False])
def test_an_empty_or_missing_store_is_no_error(run_store: Run, tmp_path: Path, words: tuple[str, ...], there: bool) -> None:
    if there:
        Store(tmp_path / "outputs/store").check()
    before = sorted(tmp_path.rglob("*"))
    ran = run_store(*words)
    assert (ran.status, ran.out, ran.err) == (0, "the store outputs/store is empty\n", "")
    assert sorted(tmp_path.rglob("*")) == before


def test_another_store_is_chosen_by_its_folder(run_store: Run, tmp_path: Path) -> None:
    Store(tmp_path / "other").save("model", {}, {"a": torch.zeros(1)}, "mine")
    assert "1 entry" in run_store("store.dir=other").out


def test_the_default_store_is_that_of_the_other_commands() -> None:
    base = yaml.safe_load((REPOSITORY / "conf/base.yaml").read_text())
    assert base["store"]["dir"] == storekeeping.DEFAULT


# ---------------------------------------------------------------------------------------------------------------- removal


def test_everything_is_removed_only_when_it_is_said(store: Store, run_store: Run) -> None:
    for words in ((), ("everything=false",), ("dry_run=true",)):
        ran = run_store("remove", *words)
        assert (ran.status, ran.out) == (2, "")
        assert ran.err == (
            "influx: say what to remove: id=..., kind=..., older_than=7d or about=..., or everything=true for all of the store.\n"
        )
    assert run_store("remove", "everything=true").status == 0
    assert [file for file in store.root.rglob("*") if file.is_file()] == []


def test_filters_that_choose_nothing_remove_nothing(store: Store, run_store: Run) -> None:
    ran = run_store("remove", "about=vgg")
    assert (ran.status, ran.err) == (0, "")
    assert re.fullmatch(r"no entry of the store outputs/store is chosen, of 5 entries \(.*\)\n", ran.out)
    assert left(store) == [0, 1, 2, 3, 4]


def _hold(store: Store, held, go_on) -> None:
    claim = store.claim("model", {"seed": 3})
    assert claim is not None
    with claim:
        held.set()
        go_on.wait(30)


def test_what_a_running_process_works_on_is_left_alone(store: Store, run_store: Run) -> None:
    fork = multiprocessing.get_context("fork")
    held, go_on = fork.Event(), fork.Event()
    holder = fork.Process(target=_hold, args=(store, held, go_on))
    holder.start()
    assert held.wait(20)
    ran = run_store("remove", "everything=true")
    go_on.set()
    holder.join()
    assert ran.status == 0
    assert re.fullmatch(r"removed 4 entries .*\nleft alone 1 that a running process works on\n", ran.out)
    assert left(store) == [3]
    assert list((store.root / "locks").iterdir()) == []


def test_a_folder_in_an_entrys_place_is_removed(store: Store, run_store: Run) -> None:
    path_of(store, 0).unlink()
    path_of(store, 0).mkdir()
    assert run_store("remove", "kind=model").status == 0
    assert left(store) == [1, 2, 4]


def test_an_entry_that_cannot_be_removed_is_named(store: Store, run_store: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    ran = run_store("remove", f"id={id_of(store, 0)}")
    assert ran.status == 2
    assert re.fullmatch(r"influx: cannot remove outputs/store/model/.*\.safetensors \(Permission denied\)\.\n", ran.err)


def test_removal_sweeps_away_what_killed_processes_left(store: Store, run_store: Run) -> None:
    temporary = path_of(store, 0).parent / ".writing-abc"
    temporary.touch()
    os.utime(temporary, (0, 0))
    run_store("remove", "kind=retrained")
    assert not temporary.exists()


# ----------------------------------------------------------------------------------------------------------- verification


def test_a_sound_store_is_verified(store: Store, run_store: Run) -> None:
    ran = run_store("verify")
    assert (ran.status, ran.err) == (0, "")
    assert re.fullmatch(r"5 entries \(.*\) checked, all sound\n", ran.out)


def test_damaged_entries_are_named_and_left_there(store: Store, run_store: Run, tmp_path: Path) -> None:
    content = path_of(store, 1).read_bytes()
    path_of(store, 1).write_bytes(content[:-1] + b"x")
    path_of(store, 3).unlink()
    path_of(store, 3).mkdir()
    ran = run_store("verify")
    first, second, summary, remedy = sorted(ran.out.splitlines()[:2], key=lambda line: "model" in line) + ran.out.splitlines()[2:]
    assert ran.status == 1
    assert first == f"{id_of(store, 1)} retrained is damaged: {path_of(store, 1).relative_to(tmp_path)}"
    assert second == f"{id_of(store, 3)} model is damaged: {path_of(store, 3).relative_to(tmp_path)}"
    assert re.fullmatch(r"5 entries \(.*\) checked, 2 damaged", summary)
    assert remedy == "a damaged entry is computed again when it is needed; influx store remove id=... removes it now"
    assert left(store) == [0, 1, 2, 3, 4]
    assert run_store("verify", "about=iris").status == 0


def test_an_entry_that_cannot_be_read_is_not_sound(store: Store, run_store: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storekeeping, "read", refuse)
    ran = run_store("verify", f"id={id_of(store, 0)}")
    assert ran.status == 1
    assert re.match(rf"{id_of(store, 0)} model cannot be read \(Permission denied\): outputs/store/model/", ran.out)


# ---------------------------------------------------------------------------------------------------------------- refusal


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["remvoe"], r"influx store has no 'remvoe'; it has list, remove, verify\. Did you mean 'remove'\?"),
        (["--cfg", "job"], r"influx store has no '--cfg'; it has list, remove, verify\."),
        (["remove", "verify"], r"one action at a time: remove or verify\."),
        (["older=7d"], r"there is no key 'older' here; there are store\.dir, .*, all\. Did you mean 'older_than'\?"),
        (["dry_run=true"], r"there is no key 'dry_run' here; there are store\.dir, id, kind, older_than, about, all\."),
        (["verify", "dry_run=true"], r"there is no key 'dry_run' here; there are store\.dir, id, kind, older_than, about\."),
        (["older_than=7"], r"older_than=7 is not possible: it must be a number with a unit of m, h, d or w, such as 7d\."),
        (["older_than=-7d"], r"older_than=-7d is not possible: it must be a number with a unit.*"),
        (["older_than=7y"], r"older_than=7y is not possible: it must be a number with a unit.*"),
        (["id=3FA9"], r"id=3FA9 is not possible: it must be the first digits of an id, of 0-9 and a-f\."),
        (["id="], r"id= is not possible: it must be the first digits of an id, of 0-9 and a-f\."),
        (["id=00000000"], r"id=00000000 is not in the store outputs/store: influx store lists the ids\."),
        (["kind=modle"], r"kind=modle is not in the store outputs/store; there is model, retrained\. Did you mean 'model'\?"),
        (["kind="], r"kind= is not possible: it must be a text\."),
        (["about="], r"about= is not possible: it must be a text\."),
        (["all=yes"], r"all=yes is not possible: it must be true or false\."),
        (["store.dir=null"], r"store\.dir=null is not possible: it must be the folder of a store\."),
        (["store.dir=file"], r"store\.dir=file is not a folder that can be read\."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_possible_is_refused_in_one_line(store: Store, run_store: Run, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "file").touch()
    ran = run_store(*words)
    assert (ran.status, ran.out) == (2, "")
    assert re.fullmatch(f"influx: {message}\n", ran.err)
    assert left(store) == [0, 1, 2, 3, 4]


# ----------------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_action_and_setting(run_store: Run, flag: str) -> None:
    ran = run_store(flag)
    assert ran.status == 0
    assert {"remove", "verify", *(f"{key}=" for key in storekeeping.RULES)} <= {*re.findall(r"[a-z_.]+=|\w+", ran.out)}


def test_the_shell_completes_its_words(run_influx: Run, tmp_path: Path) -> None:
    offered = run_influx("-sc", "query=bash", cwd=tmp_path, pictures=True, env={"COMP_LINE": "influx store ol"}).out.split()
    assert {"remove", "verify", "older_than=", "store.dir="} <= {*offered}
    assert "store" in run_influx("-sc", "query=bash", cwd=tmp_path, pictures=True, env={"COMP_LINE": "influx st"}).out.split()


IMPORTED = """
import runpy, sys
try:
    runpy.run_module("influx", run_name="__main__")
finally:
    print({*sys.modules} & {"torch", "hydra", "numpy"})
"""


def test_nothing_heavy_is_imported(store: Store, tmp_path: Path) -> None:
    for words in ((), ("verify",), ("remove", "kind=model")):
        done = subprocess.run([sys.executable, "-c", IMPORTED, "store", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_a_reader_who_stops_early_is_no_error(store: Store, tmp_path: Path) -> None:
    for seed in range(3000):
        (store.root / "model/00" / f"{seed:064x}.safetensors").parent.mkdir(exist_ok=True)
        (store.root / "model/00" / f"{seed:064x}.safetensors").touch()
    command = f"{sys.executable} -m influx store all=true | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines()[-1], done.stderr) == ("0", "")


def test_ctrl_c_ends_it_with_one_line(store: Store, run_store: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storekeeping, "is_sound", interrupted)
    ran = run_store("verify")
    assert (ran.status, ran.err) == (130, "influx: interrupted.\n")
