"""The page in headless Chromium: loads clean, sorts, filters, opens a rollout, runs nothing that a model wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.app import main
from reports.page.page import PageFigure, PageRow, PageRun, PageTable, write_page
from reports.page.rollouts import PageGroup, PageQuestion, PageResponse, PageText

pytestmark = pytest.mark.browser

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
EVIL = (
    "<script>window.hit = 'script'</script><img src=x onerror=\"window.hit = 'image'\">"
    "</script><script>window.hit = 'end'</script><svg onload=\"window.hit = 'svg'\"></svg>"
)
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="900" height="300"><style>*{stroke: red}</style>'
    '<script>parent.hit = \'figure\'</script><rect style="fill: blue" width="900" height="300"/></svg>'
)
STUDY = Path(__file__).parents[2] / "fixtures" / "study_at_39ecb1c"
LABEL = r"a|b $x_{$ \ <i>&"
WIDE = [f"benchmark_{i}" for i in range(12)]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not (Path(CHROMIUM).exists() and Path(DRIVER).exists()):
        pytest.fail(f"no {CHROMIUM} or {DRIVER}: apt-get install chromium chromium-driver", pytrace=False)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()
    shutil.rmtree(profile, ignore_errors=True)


def score_table(student: str, family: str, values: dict[str, str]) -> PageTable:
    rows = [PageRow([label, value, *["1.0"] * len(WIDE)], label=label) for label, value in values.items()]
    delta = PageRow(["delta zppo - grpo", "+99.0", *["+1.0"] * len(WIDE)], delta=True)
    return PageTable(f"{student}, {family}", ["method", "score", *WIDE], [*rows, delta], student, family)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    scores = {"base": "9.5", "grpo": "-", "kd": "100.0 ± 0.5", "zppo": "70.0"}
    cost = [PageRow(["tiny_xs", "zppo", "90 s"], label="zppo", student="tiny_xs"),
            PageRow(["tiny_s", "zppo", "2.0 min"], label="zppo", student="tiny_s")]  # fmt: skip
    responses = (
        PageResponse(PageText(EVIL), "student", 0.0, "wrong", -1.25),
        PageResponse(PageText("No judge."), "student", None, "ungraded", 0.0),
        PageResponse(PageText("w" * 300), "teacher", 1.0, "correct", None, trained=False),
    )
    groups = tuple(PageGroup(kind, PageText(f"{kind} {EVIL}"), responses) for kind in ("plain", "bcq", "ncq"))
    questions = [
        PageQuestion("grpo tiny_s seed0", 1, EVIL, EVIL, groups[:1]),
        PageQuestion("zppo tiny_s seed0", 3, "q1", "4", groups[:1]),
        PageQuestion("zppo tiny_s seed0", 7, "q2", "5", groups),
    ]
    return write_page(
        tmp_path_factory.mktemp("page"),
        title=EVIL,
        tables=[
            score_table("tiny_s", "LLM", scores), score_table("tiny_s", "VLM", scores),
            score_table("tiny_xs", "LLM", scores), PageTable("Cost", ["scale", "method", "time"], cost),
        ],
        figures=[PageFigure("curves", EVIL, SVG)],
        runs=[PageRun(f"{label} tiny_s seed0", "done", "tiny_s", label, 0, (("k" * 200, "v" * 200),))
              for label in ("grpo", "zppo")],
        rollouts=questions,
        notes=["n" * 300, EVIL],
    ).as_uri()  # fmt: skip


@pytest.fixture
def opened(driver: Any, page: str) -> Iterator[Callable[..., Any]]:
    """Opens the page; `opened(script)` evaluates JavaScript in it. Every test ends with a clean console."""

    def evaluate(script: str, *, width: int = 1280, dark: bool = False, reload: bool = False) -> Any:
        if reload:
            metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
            driver.get(page)
        return driver.execute_script(script)

    driver.get_log("browser")
    evaluate("", reload=True)
    yield evaluate
    assert driver.get_log("browser") == []
    assert evaluate("return window.hit ?? null") is None


COLUMN = (
    "return [...document.querySelectorAll('section.table')[{table}].querySelectorAll('tbody tr')]"
    ".map(row => row.cells[{column}].textContent)"
)
VISIBLE = (
    "return [...document.querySelectorAll('section.table, #runs')].filter(t => t.offsetParent)"
    ".map(t => t.querySelector('h2, h3').textContent)"
)
METHODS = (
    "return [...document.querySelectorAll('section.table')[0].querySelectorAll('tbody tr')]"
    ".filter(row => row.offsetParent).map(row => row.cells[0].textContent)"
)
FACE = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"


def headers(driver: Any, table: int) -> list[Any]:
    return driver.find_elements("css selector", "section.table")[table].find_elements("css selector", "thead th")


def test_loads_with_figure_and_structure(opened: Callable[..., Any]) -> None:
    assert opened("return document.querySelector('figure img').naturalWidth") == 900
    assert opened("return document.querySelector('h1').textContent") == EVIL
    assert opened("return document.querySelectorAll('h1').length") == 1


def test_sorting_is_numeric_and_returns(opened: Callable[..., Any], driver: Any) -> None:
    original = ["base", "grpo", "kd", "zppo", "delta zppo - grpo"]
    score = headers(driver, 0)[1]
    # 100 > 70 > 9.5 as numbers (as text 9.5 would lead); the hole of grpo and the delta row stay last.
    for order, expected in (
        ("descending", ["kd", "zppo", "base", "grpo", "delta zppo - grpo"]),
        ("ascending", ["base", "zppo", "kd", "grpo", "delta zppo - grpo"]),
        (None, original),
    ):
        score.find_element("css selector", "button").click()
        assert score.get_attribute("aria-sort") == order
        assert opened(COLUMN.format(table=0, column=0)) == expected
    assert opened(COLUMN.format(table=1, column=0)) == original  # the other tables stay


def test_sorting_by_keyboard_and_units(opened: Callable[..., Any], driver: Any) -> None:
    time = headers(driver, 3)[2]
    time.find_element("css selector", "button").send_keys("\ue007")  # Enter
    assert time.get_attribute("aria-sort") == "descending"
    assert opened(COLUMN.format(table=3, column=2)) == ["2.0 min", "90 s"]
    scale = headers(driver, 3)[0]
    scale.find_element("css selector", "button").send_keys(" ")
    assert time.get_attribute("aria-sort") is None  # one column at a time
    assert opened(COLUMN.format(table=3, column=0)) == ["tiny_s", "tiny_xs"]


def choose(driver: Any, element_id: str, text: str) -> None:
    from selenium.webdriver.support.select import Select  # not at the top: other tests need no selenium

    Select(driver.find_element("id", element_id)).select_by_visible_text(text)


def test_scale_filter(opened: Callable[..., Any], driver: Any) -> None:
    choose(driver, "filter-student", "tiny_xs")
    assert opened(VISIBLE) == ["tiny_xs, LLM", "Cost", "Runs"]
    assert "2 of 4 tables" in driver.find_element("id", "filter-result").text
    # The cost table is about all scales: only the row of the other scale goes.
    rows = "return [...document.querySelectorAll('section.table')[3].querySelectorAll('tbody tr')].map(r => r.hidden)"
    assert opened(rows) == [False, True]
    choose(driver, "filter-student", "all")
    assert len(opened(VISIBLE)) == 5


def test_family_filter(opened: Callable[..., Any], driver: Any) -> None:
    choose(driver, "filter-family", "VLM")
    assert opened(VISIBLE) == ["tiny_s, VLM", "Cost", "Runs"]


def test_method_filter(opened: Callable[..., Any], driver: Any) -> None:
    driver.find_element("css selector", "#filter-label summary").click()
    driver.find_element("css selector", "#filter-label input[value=kd]").click()
    assert opened(METHODS) == ["base", "grpo", "zppo", "delta zppo - grpo"]
    assert driver.find_element("id", "label-count").text == "3 of 4"
    driver.find_element("id", "labels-none").click()
    driver.find_element("css selector", "#filter-label input[value=zppo]").click()
    assert opened(METHODS) == ["zppo", "delta zppo - grpo"]
    assert opened("return [...document.querySelectorAll('#runs tbody tr')].map(r => r.hidden)") == [True, False]
    driver.find_element("id", "labels-all").click()
    assert len(opened(METHODS)) == 5


def test_opening_a_rollout(opened: Callable[..., Any], driver: Any) -> None:
    kinds = "return [...document.querySelectorAll('#question [data-kind]')].map(g => g.dataset.kind)"
    assert opened(kinds) == ["plain", "bcq", "ncq"]  # opens with the richest question
    tops = opened("return [...document.querySelectorAll('#question .column')].map(c => c.offsetTop)")
    assert len(tops) == 3 and len(set(tops)) == 1  # side by side
    choose(driver, "choose-run", "zppo tiny_s seed0")
    choose(driver, "choose-question", "step 3, plain 0/1: q1")  # the student's one graded response is wrong
    assert opened(kinds) == ["plain"]
    text = driver.find_element("id", "question").text
    for expected in ("q1", "Step 3, right answer 4", "reward 0", "wrong", "advantage -1.250", "student", "teacher",
                     "not trained", "ungraded · no reward · advantage 0.000"):  # fmt: skip
        assert expected in text


def test_what_a_model_wrote_shows_as_text_and_does_not_run(opened: Callable[..., Any], driver: Any) -> None:
    choose(driver, "choose-run", "grpo tiny_s seed0")
    assert opened("return document.querySelector('#question h3').textContent") == EVIL
    assert opened("return document.querySelector('#question .reply').textContent") == EVIL
    assert opened("return document.querySelector('#question .prompt').textContent") == f"plain {EVIL}"
    assert opened("return document.querySelectorAll('#question script, #question img, #question svg').length") == 0
    assert opened("return window.hit ?? null") is None


def test_the_policy_refuses_a_foreign_script(opened: Callable[..., Any], driver: Any) -> None:
    opened("const s = document.createElement('script'); s.textContent = 'window.hit = 1'; document.body.append(s)")
    assert opened("return window.hit ?? null") is None
    assert "Content Security Policy" in str(driver.get_log("browser"))


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_never_scrolls_sideways(opened: Callable[..., Any], width: int) -> None:
    opened("", width=width, reload=True)
    assert opened("return window.innerWidth") == width
    opened("for (const d of document.querySelectorAll('details')) d.open = true")
    assert opened("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    # The wide table scrolls inside its own box.
    assert opened("const b = document.querySelector('.scroll'); return b.scrollWidth > b.clientWidth")
    tops = opened("return [...document.querySelectorAll('#question .column')].map(c => c.offsetTop)")
    assert len(set(tops)) == (3 if width == 390 else 1)  # stacked where it is narrow


def test_dark_and_light_differ(opened: Callable[..., Any]) -> None:
    light, dark = (opened(FACE, dark=dark, reload=True) for dark in (False, True))
    brightness = [
        [sum(map(int, c.removeprefix("rgb(").rstrip(")").split(","))) for c in face] for face in (light, dark)
    ]
    assert brightness[0][0] > brightness[0][1] + 400  # dark text on light
    assert brightness[1][1] > brightness[1][0] + 400  # light text on dark


def test_tables_and_figures_need_no_script(opened: Callable[..., Any], driver: Any) -> None:
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened("", reload=True)
        assert driver.find_element("css selector", "section.table thead th").text == "method"
        assert driver.find_element("css selector", "figure img").is_displayed()
        assert "needs JavaScript" in driver.find_element("css selector", "#rollouts").text
        assert not driver.find_element("id", "filters").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        opened("", reload=True)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that `zppo report` writes for a study: a trained run, and base, which the macro gain needs.

    The label of the trained run has what Markdown, LaTeX and matplotlib read as markup, as run folders of others may.
    """
    study = tmp_path_factory.mktemp("studies") / "study"
    shutil.copytree(STUDY, study)
    shutil.copytree(study / "zppo", study / "base")
    for name, label, method in (("base", "base", "base"), ("zppo", LABEL, "zppo")):
        file = study / name / "tiny_xs" / "seed0" / "run.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"label": label, "method": method}))
    for name in ("metrics.jsonl", "buffer.jsonl"):
        (study / "base" / "tiny_xs" / "seed0" / name).unlink()
    assert main(["report", str(study)]) == 0
    return study / "report" / "index.html"


def test_every_image_of_a_report_is_drawn(driver: Any, reported: Path) -> None:
    driver.get(reported.as_uri())
    script = "return [...document.images].map(i => [i.alt, i.complete && i.naturalWidth > 0 && i.naturalHeight > 0])"
    images = driver.execute_script(script)
    assert len(images) == 6
    assert [alt for alt, drawn in images if not drawn] == []


def test_every_table_of_a_report_has_the_label_as_it_is(driver: Any, reported: Path) -> None:
    driver.get(reported.as_uri())
    rows = driver.execute_script(
        "return [...document.querySelectorAll('section.table')].map(t => [t.querySelector('h2, h3').textContent, "
        "t.querySelectorAll('thead th').length, "
        "[...t.querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => c.textContent))])"
    )
    tables = {title: cells for title, _, cells in rows}
    assert [row[0] for row in tables["tiny_xs, LLM"]] == ["base", LABEL]
    assert [row[1] for row in tables["Cost"]] == ["base", LABEL]
    for title, width, cells in rows:
        assert {len(row) for row in cells} == {width}, title
