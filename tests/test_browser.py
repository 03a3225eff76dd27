"""The notebooks as a reader meets them: JupyterLab on loopback, in a real Chromium (make test-browser).

Screenshots, and the milliseconds from key press to new picture, are kept in artifacts/browser.
"""

import json
import re
from statistics import median

import pytest
from browsing import ARTIFACTS, errors, open_and_run, open_notebook, whole_page
from conftest import ROOT

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
EXPLORERS = {"01_kv_sizing": 3, "02b_snapshot_file": 3, "04_depth_and_agents": 2}  # sliders that redraw a picture
LIVE = ("03_naive_vs_fanout", "06_pipeline")  # what runs and is stopped, in tests of their own
# How long each picture takes to follow a key, as the page sees it.
STOPWATCH = """picture => {
    window.redraws = [];
    document.addEventListener('keydown', () => { window.pressed = performance.now(); }, true);
    new MutationObserver(() => {
        if (window.pressed) { window.redraws.push(performance.now() - window.pressed); window.pressed = null; }
    }).observe(picture.closest('.jupyter-widgets'), {subtree: true, childList: true, attributes: true});
}"""

pytestmark = [pytest.mark.browser, pytest.mark.real]


@pytest.mark.parametrize("name", sorted({*NOTEBOOKS} - {*EXPLORERS} - {*LIVE}))
def test_a_notebook_without_explorers_shows_its_pictures(page, lab, name):
    open_notebook(page, lab, name)
    page.wait_for_selector(".jp-OutputArea img")
    assert errors(page) == []
    whole_page(page, name)


@pytest.mark.parametrize("name", EXPLORERS)
def test_a_notebook_runs_and_its_explorers_follow_their_sliders(page, lab_in_smoke, name):
    open_and_run(page, lab_in_smoke, name)
    picture = page.locator(".jupyter-widgets img").last
    picture.scroll_into_view_if_needed()
    picture.evaluate(STOPWATCH)
    sliders = page.locator(".jupyter-widgets .noUi-handle")
    assert sliders.count() == EXPLORERS[name]
    for i in range(sliders.count()):
        sliders.nth(i).focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowRight", "ArrowLeft"):
            before = picture.get_attribute("src")
            page.keyboard.press(key)
            page.wait_for_function(  # each picture is an element of its own
                "src => [...document.querySelectorAll('.jupyter-widgets img')].pop()?.src !== src", arg=before
            )
    assert errors(page) == []
    redraws = page.evaluate("window.redraws")
    report = {"median_ms": median(redraws), "all_ms": sorted(redraws)}
    (ARTIFACTS / f"{name}.redraw.json").write_text(json.dumps(report, indent=1))
    page.get_by_role("button", name="Export").click()
    page.get_by_text(re.compile(r"wrote \w+-\d+\.png")).wait_for()
    picture.screenshot(path=ARTIFACTS / f"{name}.explorer.png")
    page.set_viewport_size({"width": 520, "height": 900})
    picture.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    page.screenshot(path=ARTIFACTS / f"{name}.narrow.png")
    box = picture.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 520  # nothing is cut off in a narrow window


def test_a_race_is_run_exported_and_another_one_stopped(page, lab_in_smoke):
    open_and_run(page, lab_in_smoke, LIVE[0])
    depth = page.locator(".jupyter-widgets .noUi-handle").first
    depth.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    run, stop = page.get_by_role("button", name="Run", exact=True).last, page.get_by_role("button", name="Stop").last
    run.wait_for()
    run.click()
    page.get_by_text("finished", exact=True).wait_for(timeout=120_000)
    assert page.locator(".jupyter-widgets table").inner_text().count("the same tokens") >= 3
    timeline = page.locator(".jupyter-widgets img").last
    assert "naive" in timeline.get_attribute("alt")
    page.get_by_role("button", name="Export").click()
    page.get_by_text(re.compile(r"wrote race-\d+\.png")).wait_for()
    timeline.scroll_into_view_if_needed()
    page.screenshot(path=ARTIFACTS / "race.png")
    depth.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    run.click()
    page.get_by_text("naive is running").wait_for()
    stop.click()
    page.get_by_text("stopped; 0 finished").wait_for()
    page.screenshot(path=ARTIFACTS / "race.stopped.png")
    questions = page.locator(".jupyter-widgets textarea")
    questions.fill("")
    questions.blur()
    run.click()
    page.get_by_text("write at least one").wait_for()
    source = page.get_by_label("Document", exact=True)
    source.select_option("your own text")
    page.get_by_placeholder("Paste a text here").fill("The keeper is Ada Lind.")
    page.get_by_placeholder("Paste a text here").blur()
    page.get_by_text("so the depth is all of it").wait_for()
    source.scroll_into_view_if_needed()
    page.screenshot(path=ARTIFACTS / "race.pasted.png")
    source.select_option("upload")
    mine = {"name": "my.html", "mimeType": "text/html", "buffer": b"<p>" + b"A visit costs 12 euros. " * 30}
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files(mine)
    page.get_by_text(re.compile(r"^my.html has \d+ tokens$")).wait_for()
    page.screenshot(path=ARTIFACTS / "race.upload.png")
    assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0


def test_a_pipeline_streams_its_answers_and_is_stopped(page, lab):
    open_and_run(page, lab, LIVE[1])
    run, stop = page.get_by_role("button", name="Run", exact=True).last, page.get_by_role("button", name="Stop").last
    answers = page.locator(".jupyter-widgets table").last
    run.click()
    page.get_by_text("batched is running").wait_for()
    page.wait_for_function(  # the security agent has begun, and the reviewer has nothing to read yet
        r"""() => {
            const table = [...document.querySelectorAll('.jupyter-widgets table')].pop();
            const said = table && [...table.rows].map(row => row.innerText.trim());
            return said && said.some(text => /^security\s+\S/.test(text)) && said.some(text => text === 'reviewer');
        }""",
        timeout=60_000,
        polling=20,
    )
    page.screenshot(path=ARTIFACTS / "pipeline.running.png")
    page.get_by_text("finished", exact=True).wait_for(timeout=120_000)
    assert all(re.search(rf"{name}\s+\S", answers.inner_text()) for name in ("licence", "cost", "reviewer"))
    picture = page.locator(".jupyter-widgets img").last
    picture.scroll_into_view_if_needed()
    page.screenshot(path=ARTIFACTS / "pipeline.png")
    run.click()
    page.get_by_text("batched is running").wait_for()
    stop.click()
    page.get_by_text("stopped").last.wait_for()
    assert errors(page) == []
