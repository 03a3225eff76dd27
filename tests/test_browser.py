"""make lab as a reader meets it: explorers and the race, in JupyterLab in a real Chromium."""

import re

import pytest
from browsing import ARTIFACTS, choose, errors, git, open_and_run, open_notebook, violations

EXPLORERS = {"01_kv_sizing": 3}  # sliders that redraw a picture
CONTROLS = (".noUi-handle", "input[type=checkbox]", "textarea", "button", "select")
STATE = """control => [
    [...document.querySelectorAll('.jp-Notebook .jp-Cell')].map(cell => cell.className.match(/jp-\\w+Cell/)[0]),
    document.activeElement === control,
]"""
SLIDERS = """handles => handles.map(handle => {
    const slider = handle.closest('.widget-slider'), text = part => slider.querySelector(part).textContent;
    return [[handle.ariaLabel, handle.ariaValueText], [text('.widget-label'), text('.widget-readout')]];
})"""
CUT_OFF = """nodes => nodes.filter(node => node.scrollWidth > node.clientWidth + 1 && node.clientWidth
    && getComputedStyle(node).overflowX !== 'visible').map(node => [node.className, node.innerText])"""

pytestmark = [pytest.mark.browser, pytest.mark.real]


@pytest.mark.parametrize("name", EXPLORERS)
def test_an_explorer_follows_its_sliders_and_is_fit_to_read(page, lab, name):
    open_and_run(page, lab, name)
    explorer = page.locator(".swarmkv-explorer").last
    picture, sliders = explorer.locator("img").last, explorer.locator(".noUi-handle")
    page.wait_for_function("document.querySelectorAll('.noUi-handle[aria-label]').length > 0")  # they are told names
    assert sliders.count() == EXPLORERS[name]
    for i in range(sliders.count()):
        for key in ("ArrowRight", "ArrowLeft"):
            before = picture.get_attribute("src")
            sliders.nth(i).focus()
            page.keyboard.press(key)
            page.wait_for_function(  # each picture is an element of its own
                "src => [...document.querySelectorAll('.swarmkv-explorer img')].pop()?.src !== src", arg=before
            )
    assert len(picture.get_attribute("alt")) > 40
    page.wait_for_timeout(300)
    told = sliders.evaluate_all(SLIDERS)
    assert [said for said, _ in told] == [shown for _, shown in told]
    assert all(word for said, _ in told for word in said)
    assert violations(page, ".swarmkv-explorer") == []
    for width in (1100, 800):
        page.set_viewport_size({"width": width, "height": 1600})
        picture.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        page.screenshot(path=ARTIFACTS / f"{name}.{width}.png")
        assert explorer.locator(":not(.widget-readout)").evaluate_all(CUT_OFF) == []
    keys_are_the_controls_own(page, explorer)
    assert errors(page) == []


def keys_are_the_controls_own(page, explorer):
    """Letters that are JupyterLab's commands (delete a cell, insert one) reach the control alone."""
    for control in [explorer.locator(kind).first for kind in CONTROLS if explorer.locator(kind).count()]:
        control.focus()
        before = control.evaluate(STATE)
        for key in ("ArrowDown", *"llamixddabx", "ArrowUp"):
            page.keyboard.press(key)
        assert control.evaluate(STATE) == before
        assert before[1]


def test_a_race_is_run_and_stopped_and_reads_ones_own_document(page, lab):
    open_and_run(page, lab, "03_naive_vs_fanout")
    explorer = page.locator(".swarmkv-explorer").last
    run, stop = (explorer.get_by_role("button", name=name, exact=True) for name in ("Run", "Stop"))
    depth, questions = explorer.locator(".noUi-handle").first, explorer.locator("textarea").first
    depth.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    run.click()
    explorer.get_by_text("finished", exact=True).wait_for(timeout=120_000)
    assert run.evaluate("button => button === document.activeElement")
    assert explorer.locator("[aria-live], [role=status], [role=alert]").count() == 1
    assert explorer.locator("table").inner_text().count("the same tokens") >= 3
    assert "naive" in explorer.locator("img").last.get_attribute("alt")
    page.screenshot(path=ARTIFACTS / "race.png")
    assert violations(page, ".swarmkv-explorer") == []
    depth.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    run.click()
    explorer.get_by_text("naive is running").wait_for()
    stop.click()
    explorer.get_by_text("stopped", exact=True).wait_for()
    assert stop.evaluate("button => button === document.activeElement")
    keys_are_the_controls_own(page, explorer)
    assert "llamixddabx" in questions.input_value()
    explorer.get_by_label("Document", exact=True).select_option("upload")
    mine = {"name": "my.html", "mimeType": "text/html", "buffer": b"<p>" + b"A visit costs 12 euros. " * 30}
    with page.expect_file_chooser() as chooser:
        explorer.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files(mine)
    explorer.get_by_text(re.compile(r"^my.html has \d+ tokens")).wait_for()


def test_a_working_copy_is_saved_and_opened_again_with_live_sliders_and_git_sees_nothing(page, lab, checkout):
    open_notebook(page, lab, "00_tour")
    page.wait_for_selector(".jp-OutputArea img")  # committed, without running anything
    page.screenshot(path=ARTIFACTS / "lab.png")
    page.locator(".jp-Notebook a[href*='glossary.md']").first.click()
    page.get_by_role("tab", name="glossary.md").wait_for()  # opened, beside the notebook
    open_and_run(page, lab, "01_kv_sizing")
    with page.expect_response(lambda answer: answer.request.method == "PUT" and "contents" in answer.url):
        choose(page, "File", "Save Notebook")
    page.reload()
    page.locator(".swarmkv-explorer .noUi-handle[aria-label='Agents']").first.wait_for()
    copy, original = (
        (checkout / folder / "01_kv_sizing.ipynb").read_bytes() for folder in ("my_notebooks", "notebooks")
    )
    assert copy != original
    assert git(checkout, "status", "--porcelain") == ""
