"""`influx report`: its files say what the runs' files say, hold nothing of the network, and what is wrong is one line."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from conftest import TINY, Run, call
from PIL import Image
from reports import JOBS, Element, cells, data_of, make_runs, parsed
from sklearn.datasets import load_digits, load_iris

import influx
from influx import sweeps
from influx.report.web.examples import LARGEST, Shown, data_uri, packed
from influx.reporting.joining import summary as summary_of
from influx.reporting.numbers import telling
from influx.reporting.runs import collect
from influx.sweep_seeds import over_seeds

CONF = Path(__file__).parents[1] / "conf"
ROUNDED = 5e-4  # relative: numbers in charts have four significant digits
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def out(runs: dict[str, Path]) -> Path:
    """A report on all of them."""
    folder = runs["sweep"].parent / "out"
    ran = call("report", "sweep", "digits", "train", "stopped", "out=out", cwd=folder.parent)
    assert (ran.status, ran.err) == (0, "")
    return folder


@pytest.fixture(scope="module")
def page(out: Path) -> Element:
    return parsed(out / "report.html")


@pytest.fixture(scope="module")
def swept(runs: dict[str, Path]) -> Path:
    """A report on the sweep alone."""
    assert call("report", "sweep", "out=swept", cwd=runs["sweep"].parent).status == 0
    return runs["sweep"].parent / "swept"


@pytest.fixture(scope="module")
def summary(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "summary.csv", keep_default_na=False, dtype=str)


# ------------------------------------------------------------------------------------------------------------- the numbers


def test_the_summary_has_every_number_of_the_runs_own_tables(runs: dict[str, Path], out: Path) -> None:
    summary = pd.read_csv(out / "summary.csv")
    done = summary[summary["value"].notna()]
    assert done["folder"].nunique() == 5  # four jobs, and the run on images
    for folder, part in done.groupby("folder"):
        own = pd.read_csv(runs["sweep"].parent / folder / "correlations.csv")
        pd.testing.assert_frame_equal(part[own.columns].reset_index(drop=True), own, check_dtype=False)  # a failed job has no counts


def test_every_table_cell_is_what_the_summary_says(page: Element, summary: pd.DataFrame) -> None:
    rows = cells(page, "statistics")
    assert len(rows) == len(summary)
    for shown, row in zip(rows, summary.to_dict("records"), strict=True):
        for (heading, cell), said in zip(shown.items(), row.values(), strict=True):
            assert (float(cell) == float(said)) if cell and re.fullmatch(r"-?[\d.e+-]+", cell) else cell == said, heading


def test_means_over_seeds_are_those_of_the_summary(swept: Path) -> None:
    summary = pd.read_csv(swept / "summary.csv")
    headline = summary[summary["statistic"] == "spearman"]
    rows = cells(parsed(swept / "report.html"), "averaged")
    assert [row["method"] for row in rows] == ["exact", "random"]  # best first
    for row in rows:
        values = headline.loc[headline["method"] == row["method"], "value"].to_numpy()
        assert len(values) == int(row["runs averaged"]) == 2
        low, high = scipy.stats.t.interval(0.95, 1, loc=values.mean(), scale=scipy.stats.sem(values))
        shown = [float(row[name]) for name in ("Spearman", "95 % from", "to")]
        assert shown == pytest.approx([values.mean(), low, high], rel=1e-12)  # the same formula


def test_charts_have_the_numbers_of_their_table_and_say_them_in_words(swept: Path) -> None:
    page, spec = parsed(swept / "report.html"), data_of(swept / "report.html")["charts"]["agreement-0"]
    rows = cells(page, "averaged")
    assert [one["label"] for one in spec["data"]["values"]] == [row["method"] for row in rows]
    for drawn, row in zip(spec["data"]["values"], rows, strict=True):
        for field, heading in {"value": "Spearman", "ci_low": "95 % from", "ci_high": "to", "noise_ceiling": "noise ceiling"}.items():
            assert drawn[field] == pytest.approx(float(row[heading]), rel=ROUNDED)
        assert f"{row['method']} {drawn['said']}" in page.by_id("agreement-0").attrs["aria-label"]
    marks = [layer["mark"]["type"] for layer in spec["layer"]]
    assert marks == ["bar", "tick", "tick", "rule", "point"]  # the ceiling's band and line, single seeds, intervals, means
    assert len(spec["layer"][2]["data"]["values"]) == 4  # finished jobs


def test_pairs_are_those_of_the_run(runs: dict[str, Path], out: Path) -> None:
    run = influx.load(runs["digits"])
    (view,) = [one for one in data_of(out / "report.html")["runs"] if "digits" in one["label"]]
    pairs = view["pairs"]
    assert pairs["total"] == run.change.size == len(pairs["predicted"])
    se = run.changes.T.groupby(level="test_index", sort=False).sem().T
    for at, (removal, test) in enumerate(zip(pairs["removal"], pairs["test_index"], strict=True)):
        assert pairs["predicted"][at] == pytest.approx(run.influence.loc[removal, test], rel=ROUNDED)
        assert pairs["actual"][at] == pytest.approx(run.change.loc[removal, test], rel=ROUNDED, abs=1e-300)
        assert pairs["actual_se"][at] == pytest.approx(se.loc[removal, test], rel=ROUNDED, abs=1e-300)


def test_many_pairs_are_a_random_subset_that_is_said_and_fixed(runs: dict[str, Path]) -> None:
    from influx.reporting.numbers import pairs

    first, again = (pairs(influx.load(runs["digits"]), 20) for _ in range(2))
    assert (len(first.table), first.total) == (20, 32)
    pd.testing.assert_frame_equal(first.table, again.table)
    assert not first.table.duplicated(["removal", "test_index"]).any()


# ------------------------------------------------------------------------------------------------------------ the examples


def test_images_are_those_of_the_data_set_each_once(out: Path) -> None:
    data = data_of(out / "report.html")
    items = data["examples"]["items"]
    assert len({item["title"] for item in items if "image" in item}) == len([item for item in items if "image" in item]) > 0
    (view,) = [one for one in data["runs"] if "digits" in one["label"]]
    digits = load_digits()
    for number, index in zip(view["pairs"]["train"], view["pairs"]["removal"], strict=True):
        item = items[number]
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(item["image"].partition(",")[2]))))
        np.testing.assert_array_equal(pixels, np.round(255 * digits.images[index] / 16))
        assert item["title"] == f"train {index}: {digits.target[index]}"


def test_rows_are_in_their_original_units(swept: Path) -> None:
    data = data_of(swept / "report.html")
    iris, examples = load_iris(), data["examples"]
    for view in data["runs"]:
        for number, index in zip(view["pairs"]["test"], view["pairs"]["test_index"], strict=True):
            item = examples["items"][number]
            assert examples["names"][item["names"]] == iris.feature_names
            assert [float(value) for value in item["values"]] == pytest.approx(iris.data[index], rel=1e-3)  # four digits are shown


def test_galleries_have_the_most_influential_examples(runs: dict[str, Path], out: Path) -> None:
    table = pd.read_csv(runs["digits"] / "top_influences.csv")
    data = data_of(out / "report.html")
    (view,) = [one for one in data["runs"] if "digits" in one["label"]]
    largest = table.groupby("test_index")["influence"].agg(lambda values: values.abs().max()).nlargest(len(view["gallery"]))
    shown = [data["examples"]["items"][row["test"]]["title"] for row in view["gallery"]]
    assert [int(re.findall(r"\d+", title)[0]) for title in shown] == list(largest.index)
    first = table[table["test_index"] == largest.index[0]]
    for side in view["gallery"][0]["sides"]:
        own = first[first["kind"] == side["kind"]]
        assert [name for _, name, _ in side["items"]] == [
            f"train {i}: {label}" for i, label in own[["train_index", "train_label"]].values[:4]
        ]
        assert [float(said) for _, _, said in side["items"]] == pytest.approx(list(own["influence"][:4]), rel=5e-3)  # three digits


def test_without_examples_nothing_of_the_data_is_on_the_page(runs: dict[str, Path], tmp_path: Path) -> None:
    assert call("report", str(runs["digits"]), "examples=false", f"out={tmp_path}", cwd=tmp_path).status == 0
    data = data_of(tmp_path / "report.html")
    assert data["examples"] == {"names": [], "items": []}
    assert {*data["runs"][0]["pairs"]["train"], *data["runs"][0]["pairs"]["test"]} == {None}
    assert "data:image" not in (tmp_path / "report.html").read_text().partition('id="report-data"')[2].partition("</script>")[0]


def test_a_data_set_that_cannot_be_made_again_leaves_numbers_and_a_line(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["digits"], tmp_path / "gone")
    config = tmp_path / "gone/.hydra/config.yaml"
    config.write_text(config.read_text().replace("influx.datasets.digits.Digits", "mylab.Private"))
    ran = call("report", "gone", "out=out", cwd=tmp_path)
    assert ran.status == 0
    assert "examples of Private are not shown: dataset: mylab.Private cannot be imported" in ran.out
    page = parsed(tmp_path / "out/report.html")
    assert "Examples of Private are not shown" in page.text
    assert len(data_of(tmp_path / "out/report.html")["runs"][0]["pairs"]["predicted"]) == 32


def test_a_file_that_changed_since_shows_no_examples(tmp_path: Path) -> None:
    """Its positions may mean other rows now."""
    rows = [f"{number},{number % 7},{number % 3}\n" for number in range(60)]
    words = ("dataset=csv", "dataset.path=rows.csv", "dataset.target=y", "method=loss", "retraining.removed=4", "retraining.seeds=1")
    (tmp_path / "rows.csv").write_text("".join(["a,b,y\n", *rows]))
    assert call("validate", *words, "model=logistic", "store.dir=null", "hydra.run.dir=run", cwd=tmp_path).status == 0
    said = "examples of CsvFile are not shown: its files, or the class that reads them, have changed since the run"
    assert said not in call("report", "run", "out=before", cwd=tmp_path).out
    assert data_of(tmp_path / "before/report.html")["runs"][0]["pairs"]["train"][0] is not None
    (tmp_path / "rows.csv").write_text("".join(["a,b,y\n", *reversed(rows)]))
    assert said in call("report", "run", "out=after", cwd=tmp_path).out
    assert set(data_of(tmp_path / "after/report.html")["runs"][0]["pairs"]["train"]) == {None}


def averages(*folders: str, cwd: Path) -> list[int]:
    """How many seeds each row of a report's means has."""
    runs, _ = collect([cwd / name for name in folders])
    means = over_seeds(telling(sweeps.headline(summary_of(runs))))
    return [1] * len(folders) if means is None else list(means["n_jobs"])


def test_only_runs_that_differ_in_a_seed_alone_are_averaged(tmp_path: Path) -> None:
    x, y = (torch.as_tensor(part[::3], dtype=dtype) for part, dtype in zip(load_iris(return_X_y=True), (torch.float32, None), strict=True))
    quick = {"training.epochs": 2, "resamples": 20}
    for seed in (0, 1):  # data of one's own: nothing says whether it is the same
        influx.validate(
            lambda: torch.nn.Linear(4, 3), "cross_entropy", (x, y), (x, y), method="loss", removed=4, seeds=1, seed=seed, settings=quick,
            folder=tmp_path / f"api{seed}",
        )  # fmt: skip
    assert averages("api0", "api1", cwd=tmp_path) == [1, 1]
    options = tmp_path / "conf/method"
    options.mkdir(parents=True)
    for seed, damping in ((0, 0.01), (1, 0.01), (2, 100)):  # a YAML of the user's is edited before the third
        text = (CONF / "method/cg.yaml").read_text()
        (options / "mine.yaml").write_text(re.sub(r"(?m)^damping: .*$", f"damping: {damping}", text))
        words = (*TINY["validate"], "--config-dir", "conf", "method=mine", f"seed={seed}", f"hydra.run.dir=run{seed}")
        assert call("validate", *words, cwd=tmp_path).status == 0
    assert averages("run0", "run1", cwd=tmp_path) == [2]
    assert sorted(averages("run0", "run1", "run2", cwd=tmp_path)) == [1, 2]


def test_examples_beyond_the_room_keep_their_title() -> None:
    made, left_out = packed([Shown("a", text="x" * 50), Shown("b", text="y" * 50)], budget=80)
    assert made["items"] == [{"title": "a", "text": "x" * 50}, {"title": "b"}]
    assert left_out == 1


def test_large_pictures_become_small() -> None:
    address = data_uri(np.random.default_rng(0).random((3, 200, 100)))
    assert Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).size == (LARGEST // 2, LARGEST)


# ----------------------------------------------------------------------------------------------------------------- the page


def test_the_page_needs_no_network_and_is_small(out: Path, page: Element) -> None:
    for element in page.all():
        for name in ("src", "href", "action", "poster", "data", "srcset"):
            address = element.attrs.get(name, "#")
            assert address.startswith(("#", "data:")), (element.tag, name, address)
    assert not re.search(r"@import|url\(", page.all("style")[0].text)
    (policy,) = [one.attrs["content"] for one in page.all("meta") if one.attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert (out / "report.html").stat().st_size < 2_000_000


def test_headings_are_in_order_and_parts_have_names(page: Element) -> None:
    assert page.all("html")[0].attrs["lang"] == "en"
    levels = [int(one.tag[1]) for one in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    names = [one.attrs["id"] for one in page.all() if "id" in one.attrs]
    assert len(names) == len(set(names))
    links = [one.attrs["href"][1:] for one in page.all("a")]
    assert set(links) <= set(names)


def test_charts_pictures_and_fields_have_words(page: Element) -> None:
    for chart in (one for one in page.all("div") if one.attrs.get("class") == "chart"):
        assert (chart.attrs["role"], len(chart.attrs["aria-label"]) > 10) == ("img", True)
    assert all(one.attrs["alt"] for one in page.all("img"))
    labelled = [field for one in page.all("label") for field in one.all("input", "select")]
    assert labelled == page.all("input", "select")


def test_tables_sort_by_buttons_and_scroll_by_keyboard(page: Element) -> None:
    for part in (one for one in page.all("div") if one.attrs.get("class") == "table"):
        for heading in part.all("th"):
            assert (heading.attrs["scope"], heading.attrs["aria-sort"]) == ("col", "none")
            assert [one.tag for one in heading.all()] == ["button"]
        (scroll,) = [one for one in part.all("div") if one.attrs.get("class") == "scroll"]
        assert (scroll.attrs["tabindex"], scroll.attrs["role"]) == ("0", "region")
        assert page.by_id(scroll.attrs["aria-labelledby"]).text


def test_commands_versions_and_settings_are_there(page: Element) -> None:
    asked = [one.text for one in page.all("pre")]
    assert asked[0] == f"influx validate -m {' '.join(JOBS)} " + (
        "dataset=iris training.epochs=3 dataset.train_size=40 dataset.test_size=8 retraining.removed=6 retraining.seeds=2 resamples=50"
    )
    rows = cells(page, "runs")
    assert {row["repeat"] for row in rows} >= {"influx rerun sweep/0", "influx rerun digits", "influx rerun train"}
    facts = {one.all("dt")[0].text: one.all("dd")[0].text for one in page.all("dl")[0].all("div")}
    assert facts["numpy"] == np.__version__
    setting = {row["part"]: row for row in cells(page, "setting")}
    assert setting["dataset"]["chosen"] == "iris, digits"
    assert "iris: 40 training examples, 8 test examples; 6 removals, 2 retraining seeds" in setting["sizes"]["settings"]


def test_the_words_of_a_run_make_it_again(runs: dict[str, Path], page: Element, tmp_path: Path) -> None:
    (words,) = [row["words"] for row in cells(page, "runs") if row["repeat"] == "influx rerun sweep/0"]
    ran = call(*words.split()[1:], "hydra.run.dir=again", cwd=tmp_path)
    assert ran.status == 0
    first, again = (pd.read_csv(folder / "correlations.csv") for folder in (runs["sweep"] / "0", tmp_path / "again"))
    pd.testing.assert_frame_equal(first, again)


def test_a_run_made_in_python_has_no_command_line(tmp_path: Path) -> None:
    x, y = (
        torch.as_tensor(part[:40:4], dtype=dtype) for part, dtype in zip(load_iris(return_X_y=True), (torch.float32, None), strict=True)
    )
    influx.estimate(torch.nn.Linear(4, 3), "cross_entropy", (x, y), (x, y), method="loss", folder=tmp_path / "mine")
    assert call("report", "mine", "out=out", cwd=tmp_path).status == 0
    made = parsed(tmp_path / "out/report.html")
    assert made.all("pre")[0].text == "influx.estimate(...) in Python"
    assert cells(made, "runs")[0]["repeat"] == "only in Python, with the data and model that it was given"


def test_runs_without_a_result_are_listed_with_their_reason(page: Element) -> None:
    why = {row["folder"]: row["why"] for row in cells(page, "trouble-table")}
    assert len(why) == 3
    assert "unfinished" in why["stopped"]
    assert "method=nosuch is not known; choose from" in why["sweep/4"]
    assert page.all("ul")[0].all("li")[0].text == "6 of 9 runs finished."


def test_costs_are_those_of_the_records(runs: dict[str, Path], page: Element) -> None:
    record = json.loads((runs["digits"] / "run.json").read_text())
    (row,) = [row for row in cells(page, "cost-table") if row["run"] == "6"]
    assert float(row["estimate (s)"]) == record["stage_seconds"]["estimate"]
    assert float(row["operations"]) == record["cost"]["flops"]
    assert int(row["peak memory (bytes)"]) == record["cost"]["peak_bytes"]


def test_what_users_name_is_shown_and_never_run(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script><!--"
    rows = [f"{x},{x * x % 7},{'ab'[x % 2]}{'<b>' if x % 2 else '&amp;'}" for x in range(40)]
    (tmp_path / "flowers.csv").write_text("\n".join([f"{bad},height,kind", *rows]))
    words = ("dataset=csv", "dataset.path=flowers.csv", "dataset.target=kind", "model=logistic", "training=newton", "retraining.removed=4")
    ran = call("validate", *words, "retraining.seeds=2", "resamples=50", "hydra.run.dir=run", cwd=tmp_path)
    assert ran.status == 0, ran.err
    assert call("report", "run", "out=out", f"title={bad}", cwd=tmp_path).status == 0
    page = parsed(tmp_path / "out/report.html")
    assert page.all("h1")[0].text == page.all("title")[0].text == bad
    assert len(page.all("script")) == 3  # data, libraries, ours
    assert "<!--" not in page.all("script")[0].text
    data = data_of(tmp_path / "out/report.html")
    assert data["examples"]["names"] == [[bad, "height"]]
    assert any("<b>" in item["title"] for item in data["examples"]["items"])


# ------------------------------------------------------------------------------------------------------- paths and bad input


def test_a_run_named_twice_is_there_once(runs: dict[str, Path], tmp_path: Path) -> None:
    ran = call("report", str(runs["sweep"]), str(runs["sweep"] / "0"), f"{runs['digits']}/", str(runs["digits"]), "out=out", cwd=tmp_path)
    assert "5 of 7 runs finished" in ran.out


def test_without_a_comparison_there_is_no_figure(runs: dict[str, Path], tmp_path: Path) -> None:
    ran = call("report", str(runs["train"]), cwd=tmp_path)
    assert ran.status == 0
    (out,) = (tmp_path / "outputs/report").iterdir()
    assert sorted(file.name for file in out.iterdir()) == ["report.html", "summary.csv"]
    assert "there is no summary.png" in ran.out


def test_the_same_report_again_is_the_same_bytes(runs: dict[str, Path], swept: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in swept.iterdir()}
    assert call("report", "sweep", "out=swept", cwd=swept.parent).status == 0
    assert {file.name: file.read_bytes() for file in swept.iterdir()} == before


def test_nothing_is_trained_and_no_run_is_touched(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {file: (file.stat().st_size, file.stat().st_mtime_ns) for path in runs.values() for file in path.rglob("*")}

    before = state()
    monkeypatch.setattr("influx.experiment.Experiment.fit", None, raising=False)
    assert call("report", *map(str, runs.values()), "out=out", cwd=tmp_path).status == 0
    assert state() == before


def test_a_damaged_run_is_listed_and_the_others_are_shown(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["digits"], tmp_path / "torn")
    (tmp_path / "torn/correlations.csv").write_bytes(b"")
    ran = call("report", "torn", str(runs["digits"]), "out=out", cwd=tmp_path)
    assert ran.status == 0
    assert re.search(
        r"run 0 \(torn\) damaged: torn/correlations.csv is damaged \(.*\): copy the folder again, or repeat the run\.", ran.out
    )
    (row,) = cells(parsed(tmp_path / "out/report.html"), "trouble-table")
    assert row["why"].startswith("damaged: torn/correlations.csv is damaged")


def test_damaged_arrays_cost_a_run_its_scatter_alone(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["digits"], tmp_path / "torn")
    (tmp_path / "torn/influence.npz").write_bytes(b"PK")
    assert call("report", "torn", "out=out", cwd=tmp_path).status == 0
    (view,) = data_of(tmp_path / "out/report.html")["runs"]
    assert view["pairs"] is None
    assert "influence.npz is damaged" in view["warnings"][-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), r"report needs a run folder or a sweep folder: influx report outputs/validate/sweeps/\.\.\."),
        (("nowhere",), r"there is no folder nowhere\."),
        (("empty",), r"empty holds no run: a run folder has a run\.json, a sweep's a multirun\.yaml\."),
        (
            ("stopped",),
            r"no run of stopped has finished, so there is nothing to report\. The first: unfinished: it is running, or was stopped",
        ),
        (("train", "ouf=x"), r"there is no key 'ouf' here; there are out, title, examples\. Did you mean 'out'\?"),
        (("train", "examples=maybe"), r"examples=maybe is not possible: it must be true or false\."),
        (("train", "out="), r"out= is not possible: it must be a folder\."),
        (("train", "out=train/run.json"), r"out=train/run\.json is a file: choose a folder\."),
        (("train", "out=train/run.json/x"), r"cannot write train/run\.json/x \(Not a directory\): choose another folder with out=\.\.\."),
    ],
)
def test_what_is_wrong_is_one_line(runs: dict[str, Path], words: tuple[str, ...], message: str) -> None:
    home = runs["train"].parent
    (home / "empty").mkdir(exist_ok=True)
    ran = call("report", *words, cwd=home)
    assert ran.status == 2
    assert re.fullmatch(f"influx: {message}\n", ran.err), ran.err
    assert not (home / "outputs/report").exists()


def test_a_missing_library_is_one_line(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    ran = call("report", str(runs["train"]), "out=out", cwd=tmp_path)
    assert ran.status == 2
    assert re.fullmatch(r"influx: influx report cannot load its charts \(.*\): pip install vl-convert-python\.\n", ran.err)
    assert list((tmp_path / "out").iterdir()) == []


def test_help_says_what_it_takes(run_influx: Run, tmp_path: Path) -> None:
    ran = run_influx("report", "--help", cwd=tmp_path)
    assert ran.status == 0
    assert all(f"  {key}=" in ran.out for key in ("out", "title", "examples"))


def test_help_and_bad_words_answer_without_torch(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['influx', 'report', '--help']; from influx import cli; cli.main(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


# ------------------------------------------------------------------------------------------------------ kinds of runs


def _labels(**columns: list[Any]) -> list[str]:
    from influx.reporting.agreement import label

    table = pd.DataFrame(columns)
    return [label(row, list(columns)) for row in table.to_dict("records")]


def test_rows_are_told_apart_in_few_words() -> None:
    said = _labels(method=["cg", "exact"], **{"method.damping": ["0.1", ""]}, dataset=["iris", "digits"], seed=["0", "1"])
    assert said == ["cg, damping 0.1, iris, seed 0", "exact, digits, seed 1"]


def test_a_default_is_the_same_setting_as_its_value_typed(page: Element) -> None:
    assert "dataset.label_noise" not in cells(page, "runs")[0]  # 0 was typed for one run, and is 0.0 by default: no difference


def test_a_swept_number_is_a_line(tmp_path: Path) -> None:
    from reports import IRIS, TRUTH

    assert call("validate", "-m", "method=exact", "method.damping=0.01,1,100", *IRIS, *TRUTH, cwd=tmp_path).status == 0
    assert call("report", "sweep", "out=out", cwd=tmp_path).status == 0
    (chart,) = data_of(tmp_path / "out/report.html")["charts"].values()
    assert [row["at"] for row in chart["data"]["values"]] == [0.01, 1, 100]
    assert chart["encoding"]["x"]["scale"]["type"] == "log"
    assert chart["encoding"]["x"]["title"] == "method.damping"


def test_subsets_are_removals_by_number(tmp_path: Path) -> None:
    from reports import IRIS

    words = ("truth=subset", "retraining.subsets=5", "retraining.seeds=2", "resamples=50", "method=exact", "hydra.run.dir=run")
    assert call("validate", *words, *IRIS, cwd=tmp_path).status == 0
    assert call("report", "run", "out=out", cwd=tmp_path).status == 0
    (view,) = data_of(tmp_path / "out/report.html")["runs"]
    assert view["pairs"]["single"] is False
    assert sorted(set(view["pairs"]["removal"])) == [0, 1, 2, 3, 4]
    assert set(view["pairs"]["train"]) == {None}
    assert view["lines"][0].startswith("Linear datamodelling score")


def test_claims_of_a_reproduction_are_a_table(tmp_path: Path) -> None:
    run = tmp_path / "reproduced"
    run.mkdir()
    claim = {"study": "s", "claim": "C1", "statement": "it <works>", "our_value": 0.5, "verdict": "reproduced", "paper": "ours"}
    pd.DataFrame([claim]).to_csv(run / "claims.csv", index=False)
    Image.new("RGB", (4, 4)).save(run / "s.png")
    record = {"command": "reproduce", "status": "finished", "overrides": ["study=s"], "stage_seconds": {"s": 1.5}}
    (run / "run.json").write_text(json.dumps(record))
    (run / ".hydra").mkdir()
    (run / ".hydra/config.yaml").write_text("seed: 0\ncommand: reproduce\n")
    ran = call("report", "reproduced", "out=out", cwd=tmp_path)
    assert ran.status == 0, ran.err
    page = parsed(tmp_path / "out/report.html")
    (row,) = cells(page, "claim-table")
    assert (row["statement"], row["our value"], row["verdict"]) == ("it <works>", "0.5", "reproduced")
    assert page.all("img")[0].attrs["alt"].startswith("Run 0 (")
    assert "1 claims of published studies: 1 reproduced." in page.all("ul")[0].text
