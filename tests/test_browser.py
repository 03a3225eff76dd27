"""The notebooks as a reader meets them: JupyterLab and Voila on loopback, in a real Chromium (make test-browser).

Screenshots, and the milliseconds from key press to new picture, are kept in artifacts/browser.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
from conftest import ROOT

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
ARTIFACTS = ROOT / "artifacts" / "browser"
EXPLORERS = {"01_kv_sizing": 3, "02_snapshot_and_rope": 3, "04_depth_and_agents": 2}  # sliders that redraw a picture
LIVE = ("03_naive_vs_fanout", "06_pipeline")  # what runs and is stopped, in tests of their own
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # all cells are there to be looked at
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}
# How long each picture takes to follow a key, as the page sees it.
STOPWATCH = """picture => {
    window.redraws = [];
    document.addEventListener('keydown', () => { window.pressed = performance.now(); }, true);
    new MutationObserver(() => {
        if (window.pressed) { window.redraws.push(performance.now() - window.pressed); window.pressed = null; }
    }).observe(picture.closest('.jupyter-widgets'), {subtree: true, childList: true, attributes: true});
}"""

pytestmark = [pytest.mark.browser, pytest.mark.real]


def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.fail("no Chromium: install Debian's chromium, or set CHROMIUM to a browser's path")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium(), args=quiet)
        yield chrome
        chrome.close()


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Start a Jupyter server on copies of the notebooks: its address for a path."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".*"))
    for name, content in SETTINGS.items():
        path = folder / "config/lab/user-settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    env = os.environ | {"SWARMKV_PROFILE": "quick", "JUPYTER_CONFIG_DIR": str(folder / "config")}
    started = []

    def start(*command: str):
        port, token, log = free_port(), secrets.token_hex(16), (folder / f"log{len(started)}.txt")
        arguments = ["--ip=127.0.0.1", f"--port={port}", "--no-browser", f"--IdentityProvider.token={token}"]
        arguments += ["--ServerApp.allow_root=True", f"--ServerApp.root_dir={folder}"]
        with log.open("w") as out:
            server = subprocess.Popen(
                [sys.executable, "-m", *command, *arguments], cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT
            )
        started.append(server)
        for _ in range(600):
            if f"127.0.0.1:{port}" in log.read_text():
                return lambda path: f"http://127.0.0.1:{port}/{path}?token={token}"
            if server.poll() is not None:
                break
            time.sleep(0.1)
        pytest.fail(f"{command} did not start: {log.read_text()[-2000:]}")

    yield start
    for server in started:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def lab(serve):
    return serve("jupyterlab")


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    page.set_default_timeout(60_000)
    yield page
    page.close()


def open_notebook(page, lab, name: str) -> None:
    """Open a notebook as a reader does."""
    page.goto(lab(f"lab/tree/notebooks/{name}.ipynb").replace("?", "?reset&"))
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")


def open_and_run(page, lab, name: str) -> None:
    """Open a notebook, choose Run, Run All Cells, and look at all of it."""
    open_notebook(page, lab, name)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_function(  # cleared first, then counted up to the last cell
        """() => {
            const cells = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')];
            const prompts = cells.map(cell => cell.innerText);
            return window.ran ||= prompts.some(text => text.includes('*')), window.ran
                && prompts.every(text => /\\d/.test(text));
        }""",
        timeout=240_000,
        polling=200,
    )
    assert errors(page) == []
    whole_page(page, name)


def whole_page(page, name: str) -> None:
    """A screenshot of a notebook from top to bottom."""
    panels = "[...document.querySelectorAll('.jp-Notebook, .jp-Notebook *')].map(e => e.scrollHeight)"
    height = page.evaluate(f"Math.max(...{panels})")
    page.set_viewport_size({"width": 1100, "height": min(int(height) + 150, 16_000)})
    page.locator(".jp-Notebook .jp-Cell").first.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    page.screenshot(path=ARTIFACTS / f"{name}.png")
    page.set_viewport_size({"width": 1100, "height": 1000})


def errors(page) -> list[str]:
    found = page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()
    return found + page.locator(".jupyter-widgets [role=alert]").all_inner_texts()


@pytest.mark.parametrize("name", sorted({*NOTEBOOKS} - {*EXPLORERS} - {*LIVE}))
def test_a_notebook_without_explorers_shows_its_pictures(page, lab, name):
    open_notebook(page, lab, name)
    page.wait_for_selector(".jp-OutputArea img")
    assert errors(page) == []
    whole_page(page, name)


@pytest.mark.parametrize("name", EXPLORERS)
def test_a_notebook_runs_and_its_explorers_follow_their_sliders(page, lab, name):
    open_and_run(page, lab, name)
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


def test_a_race_is_run_exported_and_another_one_stopped(page, lab):
    open_and_run(page, lab, LIVE[0])
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


def test_a_notebook_as_a_plain_page(page, serve):
    plain = serve("jupyter_server")
    page.goto(plain("voila/render/notebooks/00_tour.ipynb"))
    page.wait_for_selector("img", timeout=240_000)
    page.get_by_text("Exercise").last.wait_for()
    assert page.locator(".traceback, [data-mime-type='application/vnd.jupyter.error']").count() == 0
    page.screenshot(path=ARTIFACTS / "voila.png", full_page=True)


def test_the_figures_page(page):
    page.goto((Path(ROOT) / "figures/index.html").as_uri())
    images = page.locator("img")
    for i in range(images.count()):
        images.nth(i).scroll_into_view_if_needed()
        page.wait_for_function("e => e.complete && e.naturalWidth > 0", arg=images.nth(i).element_handle())
    page.screenshot(path=ARTIFACTS / "figures.png", full_page=True)
