"""A study is a grid of ordinary validate jobs; its claims are judged from intervals over seeds."""

from __future__ import annotations

import html
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import Ran, call
from scipy import stats

from influx.configuration import quoted
from influx.errors import InfluxError
from influx.pipelines.reproduce import chosen_studies
from influx.report.page import page_of
from influx.rules import RULES, check_value
from influx.studies.claims import COLUMNS, Claim, interval
from influx.studies.comparisons import SeedAgreement, TruthAgreement, pseudo_values
from influx.studies.quantities import Difference, Magnitude, Spread, Value
from influx.studies.results import over_seeds
from influx.studies.study import Study

VALUE = "influx.studies.quantities.Value"
FIXED = ["claim", "paper", "where", "statement", "paper_value", "our_value", "ci_low", "ci_high", "verdict"]  # other programs read these

STUDY: dict[str, Any] = {
    "title": "Iris, a convex model",
    "papers": ["a paper"],
    "shows": "nothing new",
    "settings": [
        "dataset=iris", "dataset.train_size=30", "dataset.test_size=6", "dataset.split_seed={seed}", "model=logistic", "training=newton",
        "training.weight_decay=0.02", "retraining.removed=8", "retraining.seeds=1", "resamples=20",
    ],
    "grid": {"training.weight_decay": [0.02, 0.1]},
    "arms": {
        "exact": {"label": "exact", "settings": ["method=exact"]},
        "loss": {"settings": ["method=loss"], "grid": {"training.weight_decay": [0.1]}},
    },
    "scales": {
        "quick": {"seeds": 3, "takes": "seconds", "cuts": "much"},
        "paper": {
            "seeds": 5, "takes": "a minute", "cuts": "nothing", "grid": {"training.weight_decay": [0.02, 0.05, 0.1]}, "skip": ["loss"],
        },
    },
    "compare": {"itself": {"_target_": "influx.studies.comparisons.TruthAgreement", "first": "exact", "second": "exact"}},
    "claims": [
        {
            "claim": "X1", "paper": "a paper", "where": "section 2", "statement": "influence functions are right", "paper_value": None,
            "at_least": 0.8, "value": {"_target_": VALUE, "arm": "exact"}, "each": {"training.weight_decay": [0.02, 0.1]},
        },
        {
            "claim": "X2", "paper": "a paper", "where": "nowhere", "statement": "the training loss is as good", "paper_value": 0.9,
            "at_least": 0.97, "value": {"_target_": VALUE, "arm": "loss"}, "explanation": "it knows no test example.",
            "ceiling": {"_target_": VALUE, "arm": "itself", "at": {"training.weight_decay": 0.1}},
        },
    ],
    "figure": {
        "_target_": "influx.report.figures.lines.Lines", "axis": "training.weight_decay", "label": "weight decay", "title": "agreement",
        "arms": ["exact", "loss"],
    },
}  # fmt: skip


def changed(**parts: Any) -> dict[str, Any]:
    return {**STUDY, **parts}


def conf_of(place: Path, study: dict[str, Any] = STUDY) -> Path:
    """A user's own configuration folder with one study, mini."""
    (place / "myconf" / "study").mkdir(parents=True)
    (place / "myconf" / "study" / "mini.yaml").write_text("# a study of one's own\n" + yaml.safe_dump(study))
    return place


def reproduce(cwd: Path, *words: str) -> Ran:
    return call("reproduce", "--config-dir", "myconf", "study=mini", *words, cwd=cwd)


def results_of(folder: Path) -> pd.DataFrame:
    """Without what rounding alone decides: the control's changes of a converged convex model are 0 to the solver's tolerance."""
    table = pd.read_csv(folder / "results.csv")
    return table[~table["statistic"].str.contains("change")].reset_index(drop=True)


# ---------------------------------------------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    place = conf_of(tmp_path_factory.mktemp("study"))
    done = reproduce(place, "workers=1")
    return done, next((place / "outputs" / "reproduce" / "runs").iterdir())


def test_a_users_own_study_runs_and_writes_its_files(ran: tuple[Ran, Path]) -> None:
    done, folder = ran
    assert done.status == 0, done.err
    claims = pd.read_csv(folder / "claims.csv")
    assert list(claims.columns[: len(FIXED)]) == FIXED
    assert list(claims["claim"]) == ["X1", "X2"]
    assert list(claims["n_seeds"]) == [3, 3]
    assert claims["paper_value"].isna()[0]
    assert claims["noise_ceiling"][1] == pytest.approx(1.0)  # a truth against itself
    assert "it knows no test example." in claims["explanation"][1]
    for name in ("claims.md", "cells.csv", "results.csv", "mini.png", "report.html", "run.json"):
        assert (folder / name).stat().st_size > 0, name
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["command"], record["failed_jobs"]) == ("finished", "reproduce", [])
    assert "9 jobs, 9 of them to run" in done.out
    assert "X1" in done.out


def test_claims_are_means_of_the_jobs_own_tables(ran: tuple[Ran, Path]) -> None:
    """Read the run folders again, by hand: each is an ordinary run of influx validate."""
    _, folder = ran
    jobs = folder.parents[1] / "jobs" / "mini" / "quick" / "exact"
    cells = pd.read_csv(folder / "cells.csv").set_index("cell")
    for decay in ("0.02", "0.1"):
        tables = [pd.read_csv(jobs / f"training.weight_decay={decay}" / f"seed={seed}" / "correlations.csv") for seed in range(3)]
        values = [table.set_index("statistic")["value"]["spearman"] for table in tables]
        row = cells.loc[f"training.weight_decay={decay}"]
        assert row["our_value"] == pytest.approx(np.mean(values))
        low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high))
    run = jobs / "training.weight_decay=0.1" / "seed=2"
    config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    assert (config["seed"], config["dataset"]["split_seed"], config["training"]["weight_decay"]) == (2, 2, 0.1)
    assert not list(run.glob("*.png"))
    assert "estimated" in (run / "validate.log").read_text()  # each job's words are in its own folder


def test_finished_jobs_are_not_run_again_and_lost_ones_are(ran: tuple[Ran, Path]) -> None:
    _, folder = ran
    place = folder.parents[3]
    before = results_of(folder)
    again = reproduce(place, "workers=1", "hydra.run.dir=again")
    assert "9 jobs, 0 of them to run" in again.out
    record = folder.parents[1] / "jobs" / "mini" / "quick" / "loss" / "training.weight_decay=0.1" / "seed=1" / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": "running"}))  # as a killed process leaves it
    resumed = reproduce(place, "workers=2", "hydra.run.dir=resumed")
    assert "9 jobs, 1 of them to run" in resumed.out
    for made in ("again", "resumed"):
        pd.testing.assert_frame_equal(results_of(place / made), before)
    assert (place / "again" / "claims.csv").read_bytes() == (folder / "claims.csv").read_bytes()


def test_an_edit_of_the_code_or_of_the_settings_runs_jobs_again(ran: tuple[Ran, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = ran
    place = folder.parents[3]
    assert "9 of them to run" in reproduce(place, "workers=1", "hydra.run.dir=other", "settings=['resamples=21']").out
    assert "9 of them to run" in reproduce(place, "workers=1", "hydra.run.dir=back").out
    monkeypatch.setattr("influx.pipelines.reproduce.source_digest", lambda: "another")
    assert "9 of them to run" in reproduce(place, "workers=1", "hydra.run.dir=edited").out


def test_numbers_do_not_depend_on_the_number_of_processes(ran: tuple[Ran, Path], tmp_path: Path) -> None:
    _, folder = ran
    place = conf_of(tmp_path)
    assert reproduce(place, "workers=2").status == 0
    (other,) = (place / "outputs" / "reproduce" / "runs").iterdir()
    pd.testing.assert_frame_equal(results_of(other), results_of(folder), check_exact=True)


def test_a_killed_study_goes_on_where_it_was(ran: tuple[Ran, Path], tmp_path: Path) -> None:
    _, folder = ran
    place = conf_of(tmp_path)
    command = [sys.executable, "-m", "influx", "reproduce", "--config-dir", "myconf", "study=mini", "workers=1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    process = subprocess.Popen(command, cwd=place, **quiet)
    jobs = place / "outputs" / "reproduce" / "jobs"
    give_up = time.monotonic() + 60
    while len(list(jobs.rglob("correlations.csv"))) < 2 and time.monotonic() < give_up:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = reproduce(place, "workers=1", "hydra.run.dir=resumed")
    assert "9 jobs, 9 of them" not in done.out
    assert done.status == 0
    pd.testing.assert_frame_equal(results_of(place / "resumed"), results_of(folder), check_exact=True)


def test_a_failed_job_costs_its_own_result_only(tmp_path: Path) -> None:
    broken = {**STUDY["arms"], "broken": {"settings": ["method=exact", "dataset.train_size=3", "dataset.test_size=200"]}}
    place = conf_of(tmp_path, changed(arms=broken))
    done = reproduce(place, "workers=1", "seeds=2")
    assert done.status == 2
    assert "4 jobs have no result, and claims that need them stay open; the same command tries them again. The first: min" in done.err
    (folder,) = (place / "outputs" / "reproduce" / "runs").iterdir()
    assert list(pd.read_csv(folder / "claims.csv")["n_seeds"]) == [2, 2]
    assert "dataset.test_size=200" in (folder / "report.html").read_text()
    assert len(json.loads((folder / "run.json").read_text())["failed_jobs"]) == 4


def test_the_list_of_studies_names_each_with_its_claims_and_times(tmp_path: Path) -> None:
    out = call("reproduce", cwd=tmp_path).out
    conf = Path(__file__).parents[1] / "conf" / "study"
    for file in conf.glob("*.yaml"):
        said = yaml.safe_load(file.read_text())
        assert file.stem in out
        assert all(str(claim["claim"]) in out for claim in said.get("claims", []))
    assert not (tmp_path / "outputs").exists()


def test_a_reproduction_can_be_repeated_from_its_folder(ran: tuple[Ran, Path]) -> None:
    _, folder = ran
    place = folder.parents[3]
    again = call("rerun", str(folder), "--config-dir", "myconf", "hydra.run.dir=repeated", "workers=1", cwd=place)
    assert again.status == 0, again.err
    assert (place / "repeated" / "claims.csv").read_bytes() == (folder / "claims.csv").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), r"choose a study: study=<name>, one of all, .*mini"),
        (("study=min",), r"study=min is not known; choose from .*Did you mean 'mini'"),
        (("study=mini", "scale=huge"), r"scale=huge is not possible: it must be one of quick, paper"),
        (("study=mini", "seeds=0"), r"seeds=0 is not possible: it must be a whole number of at least 1, or null"),
        (("study=mini", "workers=0"), r"workers=0 is not possible"),
        (("study=mini", "dtype=float32"), r"a study's protocol decides dtype: to set it for every job .* settings=\['dtype=float32'\]"),
        (("study=mini", "settings=['seed=7']"), r"settings=\['seed=7'\] would give every job the same seed: use seed="),
        (("study=mini", "fresh=maybe"), r"fresh=maybe is not possible: it must be true or false"),
    ],
)  # fmt: skip
def test_a_wrong_request_stops_at_once_with_one_line(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    place = conf_of(tmp_path)
    done = call("reproduce", "--config-dir", "myconf", *words, cwd=place)
    assert done.status == 2
    assert re.search(message, done.err), done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (place / "outputs" / "reproduce" / "jobs").exists()


# ---------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({**STUDY, "grids": {}}, r"study mini has a key 'grids'; there are title, .*Did you mean 'grid'"),
        ({key: value for key, value in STUDY.items() if key != "claims"}, r"study mini needs claims\."),
        (changed(scales={"quick": STUDY["scales"]["quick"]}), r"study mini: scales are quick; there must be quick and paper"),
        (changed(arms={"exact": {"setting": []}}), r"study mini.arms.exact has a key 'setting'"),
        (changed(compare={"exact": STUDY["compare"]["itself"]}), r"'exact' is both an arm and a comparison"),
        (changed(compare={"itself": {**STUDY["compare"]["itself"], "second": "exat"}}), r"compare.itself names 'exat'; .* mean 'exact'"),
        (changed(claims=[{**STUDY["claims"][1], "value": {"_target_": VALUE, "arm": "los"}}]), r"claim X2 names 'los'; .* mean 'loss'"),
        (changed(claims=[{**STUDY["claims"][1], "at_most": 1.0}]), r"X2 needs one threshold: at_least or at_most"),
        (changed(claims=[{**STUDY["claims"][1], "verdict": 1.0}]), r"X2 has a key 'verdict'"),
        (changed(claims=[{**STUDY["claims"][1], "values": {}}]), r"X2 needs value \(one quantity\) or values"),
        (changed(claims=[{k: v for k, v in STUDY["claims"][1].items() if k != "where"}]), r"X2 needs where\."),
        (changed(figure={"_target_": VALUE, "arm": "loss"}), r"study mini.figure: influx.studies.quantities.Value is not a kind of"),
    ],
)  # fmt: skip
def test_a_study_that_is_wrong_says_where(node: dict[str, Any], message: str) -> None:
    with pytest.raises(InfluxError, match=message):
        Study.read("mini", node)


def test_jobs_are_the_grid_with_later_settings_winning() -> None:
    study = Study.read("mini", STUDY)
    jobs = study.jobs("quick", seeds=2, first_seed=7, more=["device=cpu"])
    assert [(job.arm, job.point["training.weight_decay"], job.seed) for job in jobs] == [
        ("exact", 0.02, 7), ("exact", 0.02, 8), ("exact", 0.1, 7), ("exact", 0.1, 8), ("loss", 0.1, 7), ("loss", 0.1, 8),
    ]  # fmt: skip
    assert jobs[0].settings[-4:] == ("method=exact", "training.weight_decay=0.02", "seed=7", "device=cpu")
    assert "dataset.split_seed=7" in jobs[0].settings
    assert {job.arm for job in study.jobs("paper")} == {"exact"}
    assert len({job.place for job in jobs}) == len(jobs)
    assert len(study.jobs("paper")) == 3 * 5


def test_an_axis_may_have_named_levels_that_arms_choose_from() -> None:
    levels = {"small": ["dataset.train_size=30"], "large": ["dataset.train_size=60", "training.weight_decay=0.1"], "plain": None}
    arms = {"exact": {}, "loss": {"grid": {"size": ["large"]}}}
    study = Study.read("mini", changed(grid={"size": levels}, arms=arms, compare={}, claims=[]))
    jobs = study.jobs("quick", seeds=1)
    assert [(job.arm, job.point["size"]) for job in jobs if "size" in job.point][:3] == [
        ("exact", "small"),
        ("exact", "large"),
        ("exact", "plain"),
    ]
    (chosen,) = [job for job in jobs if job.arm == "loss"]
    assert chosen.settings[-3:] == ("dataset.train_size=60", "training.weight_decay=0.1", "seed=0")
    wrong = Study.read("mini", changed(grid={"size": levels}, arms={"loss": {"grid": {"size": ["larg"]}}}, compare={}, claims=[]))
    with pytest.raises(InfluxError, match=r"size has no level 'larg'; there are small, large, plain\. Did you mean 'large'"):
        wrong.jobs("quick")


# ---------------------------------------------------------------------------------------------------------------- our own studies

CONF = Path(__file__).parents[1] / "conf"
STUDIES = sorted(file for file in (CONF / "study").glob("*.yaml") if file.stem != "all")


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_a_study_of_ours_asks_for_what_exists(file: Path, scale: str) -> None:
    """Every setting of every job is a group's option, or a key with a rule that takes the value."""
    study = Study.read(file.stem, yaml.safe_load(file.read_text()))
    jobs = study.jobs(scale)
    assert jobs
    for word in {word for job in jobs for word in job.settings}:
        key, _, text = word.partition("=")
        key = key.lstrip("+").replace("retraining.solver.", "method.solver.")  # the same solvers in another place
        group = key.partition("@")[0]
        if (CONF / group).is_dir():
            assert (CONF / group / f"{text}.yaml").is_file(), word
        else:
            assert key in RULES, word
            check_value(key, yaml.safe_load(text))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_a_study_of_ours_has_seeds_enough_and_says_what_quick_cuts(file: Path) -> None:
    assert re.match(r"# \S", file.read_text())
    study = Study.read(file.stem, yaml.safe_load(file.read_text()))
    assert study.scales["quick"].seeds >= (5 if study.needs.modules else 10)  # a language model's training takes a minute
    assert study.scales["paper"].seeds >= study.scales["quick"].seeds
    for scale in study.scales.values():
        assert scale.cuts
        assert scale.takes


def test_the_study_that_contributing_shows_runs(tmp_path: Path) -> None:
    text = (CONF.parent / "CONTRIBUTING.md").read_text()
    (block,) = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "claims:" in block]
    place = conf_of(tmp_path, yaml.safe_load(block))
    assert reproduce(place, "workers=1", "seeds=3").status == 0
    (claims,) = place.glob("outputs/reproduce/runs/*/claims.csv")
    assert list(pd.read_csv(claims)["verdict"]) == ["reproduced"]


def test_every_published_claim_has_its_place_in_one_study() -> None:
    studies = [Study.read(file.stem, yaml.safe_load(file.read_text())) for file in STUDIES]
    ids = {claim.claim for study in studies for claim in study.claims}
    known = {
        "E": range(1, 9),
        "B": range(1, 10),
        "N": [1],
        "H": range(7),
        "T": range(9),
        "C": range(1, 7),
    }  # C0 is a test: tests/test_crossloss.py
    assert {f"{letter}{k}" for letter, numbers in known.items() for k in numbers} <= {re.sub(r"[a-z]+$", "", name) for name in ids}


# ---------------------------------------------------------------------------------------------------------------- judging


def table_of(values: dict[str, list[float]], **axes: Any) -> pd.DataFrame:
    """Results of arms with one value a seed."""
    rows = [
        {"arm": arm, **axes, "seed": seed, "statistic": "spearman", "value": value}
        for arm, column in values.items()
        for seed, value in enumerate(column)
    ]
    return pd.DataFrame(rows)


def claim(value: dict[str, Any], **more: Any) -> Claim:
    node = {"claim": "X", "paper": "p", "where": "w", "statement": "s", "paper_value": None, "value": value, **more}
    return Claim.read("claims", node)


ARM = {"_target_": VALUE, "arm": "a"}
STEADY = [0.90, 0.92, 0.91, 0.93]  # mean .915, 95 % interval .8945 to .9355


@pytest.mark.parametrize(
    ("limits", "verdict"),
    [
        ({"at_least": 0.89}, "reproduced"),
        ({"at_least": 0.90}, "inconclusive"),
        ({"at_least": 0.94}, "not reproduced"),
        ({"at_most": 0.94}, "reproduced"),
        ({"at_most": 0.93}, "inconclusive"),
        ({"at_most": 0.89}, "not reproduced"),
    ],
)
def test_a_verdict_needs_the_whole_interval(limits: dict[str, float], verdict: str) -> None:
    row, (cell,) = claim(ARM, **limits).judge(table_of({"a": STEADY}), 4)
    assert list(row) == COLUMNS
    assert row["verdict"] == cell["verdict"] == verdict
    low, high = stats.t.interval(0.95, 3, np.mean(STEADY), stats.sem(STEADY))
    assert (row["our_value"], row["ci_low"], row["ci_high"]) == pytest.approx((0.915, low, high))


@pytest.mark.parametrize("values", [[], [0.99], [math.nan, 0.99]], ids=["no job", "one seed", "one defined"])
def test_what_has_no_interval_is_inconclusive(values: list[float]) -> None:
    row, _ = claim(ARM, at_least=0.5).judge(table_of({"a": values, "b": [0.0]}), max(1, len(values)))
    assert row["verdict"] == "inconclusive"
    assert row["n_seeds"] == len([value for value in values if value == value])


def test_seeds_that_agree_exactly_have_an_interval_without_width() -> None:
    assert interval(np.array([1.0, 1.0, 1.0])) == (1.0, 1.0, 1.0)
    row, _ = claim(ARM, at_least=1.0).judge(table_of({"a": [1.0, 1.0]}), 2)
    assert row["verdict"] == "reproduced"


def test_a_claim_about_several_settings_is_as_good_as_the_worst_of_them() -> None:
    results = pd.concat(
        [table_of({"a": STEADY}, depth=1), table_of({"a": [0.5, 0.52, 0.51]}, depth=2), table_of({"a": [0.2, 0.9]}, depth=3)]
    )
    made = claim(ARM, at_least=0.8, each={"depth": [1, 2, 3]})
    row, cells = made.judge(results, 2)
    assert [cell["verdict"] for cell in cells] == ["reproduced", "not reproduced", "inconclusive"]
    assert (row["verdict"], row["cell"]) == ("not reproduced", "depth=2")
    assert claim(ARM, at_least=0.8, each={"depth": [1, 3]}).judge(results, 2)[0]["verdict"] == "inconclusive"
    assert claim(ARM, at_least=0.8, each={"depth": [1]}).judge(results, 2)[0]["verdict"] == "reproduced"


def test_missing_seeds_leave_a_claim_open() -> None:
    """Whose result is missing could be those that speak against it."""
    row, _ = claim(ARM, at_least=0.5).judge(table_of({"a": STEADY}), 10)
    assert (row["verdict"], row["n_seeds"]) == ("inconclusive", 4)
    assert "Only 4 of 10 seeds have a result, so there is no verdict." in row["explanation"]


def test_the_cell_that_is_shown_has_the_claims_verdict() -> None:
    """An open cell speaks for an open claim, although another that holds may have a smaller margin."""
    columns = {1: [0.81, 0.811, 0.809], 2: [0.5, 1.3, 0.9]}
    results = pd.concat([table_of({"a": values}, depth=depth) for depth, values in columns.items()])
    row, _ = claim(ARM, at_least=0.8, each={"depth": [1, 2]}).judge(results, 3)
    assert (row["verdict"], row["cell"]) == ("inconclusive", "depth=2")
    assert "more seeds would tell (seeds=6)" in row["explanation"]


def test_a_truth_that_does_not_agree_with_itself_fails_the_comparison_not_the_estimator() -> None:
    results = table_of({"a": [0.1, 0.12, 0.11], "truth": [0.3, 0.32, 0.31]})
    row, _ = claim(ARM, at_least=0.5, ceiling={"_target_": VALUE, "arm": "truth"}, explanation="Because.").judge(results, 3)
    assert row["noise_ceiling"] == pytest.approx(0.31)
    assert row["explanation"].startswith("At quick scale: Because. The truth agrees with itself across seeds by 0.31 only")
    met, _ = claim(ARM, at_least=0.05, explanation="Because.").judge(results, 3)
    assert met["explanation"] == ""


def test_quantities_are_taken_seed_by_seed() -> None:
    results = table_of({"a": [0.5, -0.5, 0.2], "b": [0.1, 0.3], "c": [0.0, 0.0, 0.9]})
    a, b, c = (Value(arm) for arm in "abc")
    assert Difference(a, b).per_seed(results).to_dict() == pytest.approx({0: 0.4, 1: -0.8})  # seed 2 has no b
    assert Magnitude(a).per_seed(results).to_dict() == pytest.approx({0: 0.5, 1: 0.5, 2: 0.2})
    assert Spread([a, b, c]).per_seed(results).to_dict() == pytest.approx({0: 0.5, 1: 0.8})
    assert Spread([a, Difference(b, c)]).arms == ("a", "b", "c")


def test_a_value_that_is_not_said_fully_is_refused() -> None:
    results = pd.concat([table_of({"a": [0.1]}, depth=1), table_of({"a": [0.2]}, depth=2)])
    with pytest.raises(InfluxError, match=r"arm a has several values of spearman for a seed at \{\}: say more under `at`"):
        Value("a").per_seed(results)
    with pytest.raises(InfluxError, match="there is no axis 'width' in the study's grid"):
        Value("a", at={"width": 3}).per_seed(results)


def test_means_over_seeds_keep_arms_points_and_statistics_apart() -> None:
    results = pd.concat([table_of({"a": [0.5, -0.5]}, depth=1), table_of({"a": [0.2, 0.4], "b": [math.nan, 0.3]}, depth=2)])
    table = over_seeds(results).set_index(["arm", "depth"])
    assert table.loc[("a", 1), ["mean", "magnitude", "n"]].tolist() == pytest.approx([0.0, 0.5, 2])
    assert table.loc[("a", 2), ["mean", "magnitude", "n"]].tolist() == pytest.approx([0.3, 0.3, 2])
    assert table.loc[("b", 2), ["mean", "n"]].tolist() == pytest.approx([0.3, 1])


# ---------------------------------------------------------------------------------------------------------------- comparing truths


def folder_with(place: Path, rows: list[int], change: np.ndarray) -> Path:
    place.mkdir(parents=True)
    np.savez(place / "ground_truth.npz", change=change[:, :, None], train_index=np.array(rows), test_index=np.arange(change.shape[1]))
    return place


def test_truths_are_compared_over_what_both_removed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    change = rng.normal(size=(6, 3))
    other = np.vstack([change[[4, 2, 0, 1]] ** 3, rng.normal(size=(2, 3))])  # the same order of the four in common
    folders = {
        "a": {0: folder_with(tmp_path / "a0", [10, 11, 12, 13, 14, 15], change)},
        "b": {0: folder_with(tmp_path / "b0", [14, 12, 10, 11, 90, 91], other), 1: tmp_path},
    }
    made = {row["statistic"]: row["value"] for row in TruthAgreement("a", "b").rows(folders)}
    assert made["spearman"] == pytest.approx(1.0)
    common, cubed = change[[4, 2, 0, 1]], other[:4]
    assert made["pearson"] == pytest.approx(np.mean([stats.pearsonr(common[:, t], cubed[:, t]).statistic for t in range(3)]))


def test_agreement_across_seeds_is_the_mean_over_pairs_with_an_interval_that_holds(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    changes = [rng.normal(size=(7, 2)) for _ in range(4)]
    folders = {"a": {s: folder_with(tmp_path / str(s), list(range(7)), change) for s, change in enumerate(changes)}}
    values = [row["value"] for row in SeedAgreement("a").rows(folders) if row["statistic"] == "spearman"]

    def rho(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([stats.spearmanr(x[:, t], y[:, t]).statistic for t in range(2)]))

    pairs = [rho(changes[a], changes[b]) for a in range(4) for b in range(a)]
    assert np.mean(values) == pytest.approx(np.mean(pairs))  # of the pseudo-values, that of the pairs
    assert SeedAgreement("a").rows({"a": {0: folders["a"][0], 1: folders["a"][1]}}) == []  # two seeds have no spread


def test_the_interval_of_a_mean_over_pairs_of_seeds_covers_what_it_should() -> None:
    """Pairs share seeds: t intervals over each seed's own mean cover about two thirds, those over pseudo-values about 95 %.

    400 draws of ten seeds have a standard error of 1.2 % at 93 %.
    """
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        seeds = rng.normal(size=10)  # of a quantity g(a, b) = 1 + a + b for each pair, with mean 1
        values = pseudo_values({(a, b): 1 + seeds[a] + seeds[b] for a in range(10) for b in range(a)})
        _, low, high = interval(np.array(list(values.values())))
        covered += low <= 1 <= high
    assert 0.90 <= covered / 400 <= 0.98


def test_truths_with_too_little_in_common_have_no_correlation(tmp_path: Path) -> None:
    change = np.ones((4, 1))
    folders = {"a": {0: folder_with(tmp_path / "a", [1, 2, 3, 4], change)}, "b": {0: folder_with(tmp_path / "b", [3, 4, 5, 6], change)}}
    assert all(math.isnan(row["value"]) for row in TruthAgreement("a", "b").rows(folders))


# ---------------------------------------------------------------------------------------------------------------- the page


def test_a_value_is_quoted_as_hydra_reads_it() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for text in ("/a b/c", "it's", "back\\slash", "end\\", "q\\'x", "a,b=c{d}", "$x", "\\\\"):
        assert OverridesParser.create().parse_override(f"key={quoted(text)}").value() == text


def test_the_page_says_what_was_changed_and_repeats_it(tmp_path: Path) -> None:
    place = conf_of(tmp_path)
    reproduce(place, "workers=1", "seeds=2", "seed=3", "settings=['resamples=30']")
    (page,) = place.glob("outputs/reproduce/runs/*/report.html")
    text = html.unescape(page.read_text())
    assert "With settings that the study does not have: resamples=30." in text
    assert """influx reproduce study=mini scale=quick seeds=2 seed=3 "settings=['resamples=30']\"""" in text


def test_the_page_stands_alone_and_hides_nothing(ran: tuple[Ran, Path]) -> None:
    text = (ran[1] / "report.html").read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert "data:image/png;base64," in text
    assert 'alt="' in text
    assert 'lang="en"' in text
    assert "it knows no test example." in text
    assert "influx reproduce study=mini scale=quick" in text


def test_the_page_escapes_what_it_is_given(ran: tuple[Ran, Path]) -> None:
    from influx.report.page import StudyPage

    claims = pd.DataFrame([claim(ARM, at_least=0.5).judge(table_of({"a": STEADY}), 4)[0]]).assign(statement="a < b & <script>")
    picture = ran[1] / "mini.png"
    page = page_of([StudyPage("x", "<b>", ("p & q",), "shows", "quick", "cuts", claims, picture, (("place", "why <i>"),), "influx", 4)])
    assert "<script>" not in page
    assert "a &lt; b &amp; &lt;script&gt;" in page
    assert "why &lt;i&gt;" in page


def test_a_study_that_needs_what_is_not_installed_says_so_and_all_leaves_it_out(caplog: pytest.LogCaptureFixture) -> None:
    nodes = {"all": {"all": True}, "there": STUDY, "absent": {**STUDY, "needs": {"extra": "text", "modules": ["json", "no_such_module"]}}}
    with pytest.raises(InfluxError, match=r"study=absent needs no_such_module: pip install 'influx\[text\]'\."):
        chosen_studies(nodes["absent"], "absent", list(nodes), nodes.__getitem__)
    with caplog.at_level("WARNING", "influx"):
        assert [study.name for study in chosen_studies(nodes["all"], "all", list(nodes), nodes.__getitem__)] == ["there"]
    assert "left out: study=absent needs no_such_module" in caplog.text
    with pytest.raises(InfluxError, match=r"study absent\.needs needs modules"):
        Study.read("absent", {**STUDY, "needs": {"extra": "text"}})


IRIS = ("training.epochs=60", "retraining.epochs=30")
NETWORKS = ("dataset.train_size=120", "dataset.test_size=40", "training.epochs=2", "retraining.epochs=2", "retraining.groups=8")
PBRF = ("dataset.train_size=80", "dataset.test_size=12", "retraining.removed=5", "retraining.max_iterations=20")
TINY = {  # settings that make every job of a study a matter of a second
    "crossloss_clustering": ("dataset.points=10",),
    "crossloss_digits": ("dataset.train_size=60", "dataset.test_size=10", "retraining.removed=5", "retraining.groups=3"),
    "crossloss_weat": (
        "dataset.train_size=400",
        "dataset.test_size=10",
        "training.epochs=1",
        "objective.max_pairs=30",
        "objective.min_count=5",
        "retraining.group_size=10",
    ),
    "fragility_causes": ("resamples=20",),
    "fragility_iris_depth": IRIS,
    "fragility_iris_width": IRIS,
    "fragility_mnist_fc": NETWORKS,
    "fragility_convnets": NETWORKS,
    "hydra_approximation": ("dataset.train_size=60", "dataset.test_size=10", "retraining.removed=5"),
    "hydra_cleansing": ("dataset.train_size=100", "dataset.test_size=40", "training.epochs=2"),
    "turnover_dropout": ("training.epochs=2", "dataset.train_size=60", "dataset.test_size=10", "retraining.removed=3"),
    "turnover_text": ("dataset.train_size=40", "dataset.test_size=20", "training.epochs=1"),
    "pbrf_decomposition": PBRF,
    "pbrf_validation": PBRF,
}


@pytest.mark.slow
@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_runs_when_made_tiny(file: Path, tmp_path: Path) -> None:
    study = Study.read(file.stem, yaml.safe_load(file.read_text()))
    if study.needs.missing:
        pytest.skip(study.needs.missing)
    words = ",".join(f"'{word}'" for word in TINY.get(study.name, ()))
    done = call("reproduce", f"study={study.name}", "seeds=2", "workers=1", f"settings=[{words}]", cwd=tmp_path)
    assert done.status in (0, None), done.err
    (folder,) = (tmp_path / "outputs" / "reproduce" / "runs").iterdir()
    assert json.loads((folder / "run.json").read_text())["failed_jobs"] == []
    assert (folder / f"{study.name}.png").stat().st_size > 10_000
    claims = pd.read_csv(folder / "claims.csv")
    assert list(claims["claim"]) == [claim.claim for claim in study.claims]
    assert (claims["n_seeds"] == 2).all()
