"""The report's page in a real browser: it draws, sorts, filters and explains itself, in light and dark, wide and narrow."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from conftest import call
from reports import make_runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
THEMES = {"light": 1, "dark": 0}  # Blink's numbers of preferred colour schemes

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

BEFORE = """<script>
window.problems = [];
for (const kind of ["error", "assert"]) {
  const told = console[kind];
  console[kind] = (...words) => { problems.push(words.join(" ")); told(...words); };
}
addEventListener("error", (event) => problems.push(String(event.message)));
addEventListener("unhandledrejection", (event) => problems.push(String(event.reason)));
document.addEventListener("securitypolicyviolation", (event) => problems.push(`blocked ${event.blockedURI} by ${event.violatedDirective}`));
</script>"""

AFTER = """<script>
(async () => {
  const found = {};
  const one = (selector) => document.querySelector(selector);
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  try {
    for (let n = 0; n < 200 && !document.documentElement.dataset.ready; n++) await pause(50);
    QUESTIONS
  } catch (error) { problems.push(String(error.stack)); }
  found.problems = problems;
  document.body.append(Object.assign(document.createElement("pre"), { id: "found", textContent: JSON.stringify(found) }));
})();
</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("browser")
    make_runs(home)
    assert call("report", "sweep", "digits", "train", "stopped", "out=out", cwd=home).status == 0
    return home / "out/report.html"


def ask(report: Path, questions: str, theme: str = "light", scripts: str = "") -> dict[str, Any]:
    """What a script finds when it runs at the end of the page; `found.problems` are errors, and requests that the page's policy blocked."""
    page = report.read_text().replace('<meta charset="utf-8">', f'<meta charset="utf-8">{BEFORE}', 1)
    whole, end, _ = page.rpartition("</body></html>")  # the libraries have one of their own
    page = f"{whole}{scripts}{AFTER.replace('QUESTIONS', questions)}{end}"
    copy = report.with_name("asked.html")
    copy.write_text(page)
    found = re.search(r'<pre id="found">(.*?)</pre>', _opened(copy, theme), re.DOTALL)
    assert found, "the script did not come to its end"
    return json.loads(unescape(found[1]))


def _opened(page: Path, theme: str, *more: str) -> str:
    words = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--allow-file-access-from-files",
        f"--user-data-dir={page.parent / 'profile'}", f"--blink-settings=preferredColorScheme={THEMES[theme]}", "--window-size=1280,900",
        "--virtual-time-budget=30000", *more, "--dump-dom", f"file://{page}",
    ]  # fmt: skip
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout


@cache
def fetched_axe() -> str:
    """axe-core, by npm."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["npm", "pack", "--silent", "axe-core@4"], cwd=place, check=True, capture_output=True)
        (packed,) = Path(place).glob("axe-core-*.tgz")
        with tarfile.open(packed) as files:
            member = files.extractfile("package/axe.min.js")
            assert member is not None
            return member.read().decode()


def accessible(report: Path, theme: str, axe: str) -> None:
    questions = """
    for (const part of document.querySelectorAll("details")) part.open = true;
    const result = await axe.run(document, { resultTypes: ["violations"] });
    found.passes = result.passes.length;
    found.violations = result.violations.map(({ id, impact, nodes }) => [impact, id, nodes.length, nodes[0].html.slice(0, 200)]);"""
    safe = axe.replace("</script", "<\\/script")
    found = ask(report, questions, theme, f"<script>{safe}</script>")
    assert found["problems"] == []
    assert found["passes"] > 20
    assert found["violations"] == []


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_nothing(report: Path, theme: str) -> None:
    """With AXE=path/to/axe.min.js (`npm pack axe-core`)."""
    if "AXE" not in os.environ:
        pytest.skip("AXE names no axe.min.js")
    accessible(report, theme, Path(os.environ["AXE"]).read_text())


@pytest.mark.network
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
@pytest.mark.parametrize("theme", THEMES)
def test_axe_from_npm_finds_nothing(report: Path, theme: str) -> None:
    accessible(report, theme, fetched_axe())


@pytest.mark.parametrize("theme", THEMES)
def test_charts_are_drawn_in_the_themes_colours_without_an_error(report: Path, theme: str) -> None:
    questions = """
    found.marks = [...document.querySelectorAll(".chart")].map((part) => part.querySelectorAll("svg path").length);
    found.point = one("#pairs-chart .mark-symbol path").getAttribute("fill");
    found.accent = getComputedStyle(document.documentElement).getPropertyValue("--accent").trim();
    found.page = getComputedStyle(document.body).backgroundColor;"""
    found = ask(report, questions, theme)
    assert found["problems"] == []
    assert len(found["marks"]) >= 3
    assert min(found["marks"]) > 5
    assert found["point"] == found["accent"] == {"light": "#0072b2", "dark": "#56b4e9"}[theme]
    assert found["page"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 28)"}[theme]


def test_tables_sort_filter_and_say_so(report: Path) -> None:
    questions = """
    const table = one("#statistics"), button = [...table.querySelectorAll("th button")].find((part) => part.textContent === "value");
    const column = [...button.closest("tr").children].indexOf(button.parentNode);
    const values = () => [...table.querySelectorAll("tbody tr:not([hidden])")].map((row) => row.cells[column].dataset.value ?? null);
    found.count = table.querySelector(".count").textContent;
    button.click(); found.rising = values(); found.first = button.parentNode.getAttribute("aria-sort");
    button.click(); found.falling = values(); found.second = button.parentNode.getAttribute("aria-sort");
    const field = table.querySelector("input[type=search]");
    field.value = "random"; field.dispatchEvent(new Event("input", { bubbles: true }));
    found.filtered = table.querySelector(".count").textContent;
    for (const choice of table.querySelectorAll("select")) choice.value = "";
    field.value = ""; field.dispatchEvent(new Event("input", { bubbles: true }));
    found.all = table.querySelector(".count").textContent;"""
    found = ask(report, questions)
    assert found["problems"] == []
    assert found["count"].startswith("5 of ")  # rows of Spearman at first: four jobs and a run
    rising, falling = ([float(value) for value in found[name]] for name in ("rising", "falling"))
    assert rising == sorted(rising)
    assert falling == rising[::-1]
    assert (found["first"], found["second"]) == ("ascending", "descending")
    assert found["filtered"].startswith("2 of ")
    assert re.fullmatch(r"\d+ rows", found["all"])


def test_another_run_changes_scatter_gallery_and_command(report: Path) -> None:
    questions = """
    const chooser = one("#run-chooser");
    const seen = () => [one("#pairs-caption").textContent, one("#run-again").textContent, one("#gallery-rows").textContent];
    found.before = seen();
    chooser.value = [...chooser.options].findIndex((option) => option.textContent.includes("digits"));
    chooser.dispatchEvent(new Event("change")); await pause(500);
    found.after = seen();
    found.points = document.querySelectorAll("#pairs-chart .mark-symbol path").length;
    found.images = [...document.querySelectorAll("#gallery-rows img")].map((part) => part.naturalWidth);
    one("#pairs-scale").click(); await pause(500);
    found.logarithmic = document.querySelectorAll("#pairs-chart .mark-symbol path").length;"""
    found = ask(report, questions)
    assert found["problems"] == []
    assert all(before != after for before, after in zip(found["before"], found["after"], strict=True))
    assert "influx rerun digits" in found["after"][1]
    assert found["points"] == found["logarithmic"] == 32  # 4 left out x 8 tested
    assert set(found["images"]) == {8}


def test_pointing_at_a_pair_shows_its_examples(report: Path) -> None:
    questions = """
    const chooser = one("#run-chooser");
    chooser.value = [...chooser.options].findIndex((option) => option.textContent.includes("digits"));
    chooser.dispatchEvent(new Event("change")); await pause(500);
    const point = one("#pairs-chart .mark-symbol path"), place = point.getBoundingClientRect();
    const at = { bubbles: true, clientX: place.x + place.width / 2, clientY: place.y + place.height / 2 };
    for (const kind of ["pointerover", "pointermove", "mousemove"]) point.dispatchEvent(new PointerEvent(kind, at));
    await pause(300);
    found.hover = one("#hover").textContent; found.images = one("#hover").querySelectorAll("img").length;"""
    found = ask(report, questions)
    assert found["problems"] == []
    assert re.search(r"train \d+: \d.*test \d+: \d.*predicted-?\d.*actual-?\d", found["hover"])
    assert found["images"] == 2


def test_a_phone_scrolls_down_only(report: Path) -> None:
    wrapper = report.with_name("phone.html")
    wrapper.write_text(
        '<!doctype html><iframe src="report.html" width="390" height="800"></iframe>'
        '<script>const inside = document.querySelector("iframe");'
        "const look = () => { const page = inside.contentDocument?.documentElement;"
        "if (!page?.dataset?.ready) return setTimeout(look, 50);"
        'document.body.append(Object.assign(document.createElement("pre"),'
        '{ id: "found", textContent: [page.clientWidth, page.scrollWidth].join(" ") })); }; look();</script>'
    )
    found = re.search(r'<pre id="found">(\d+) (\d+)</pre>', _opened(wrapper, "light"))
    assert found
    width, needed = map(int, found.groups())
    assert 300 < width <= 390
    assert needed <= width


def test_a_picture_of_the_page_is_not_empty(report: Path) -> None:
    from PIL import Image

    picture = report.with_name("page.png")
    _opened(report, "dark", f"--screenshot={picture}")
    assert len(Image.open(picture).convert("RGB").getcolors(1 << 24)) > 50
