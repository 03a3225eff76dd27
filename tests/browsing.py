"""What the browser's tests share: a Jupyter server on loopback, a real Chromium, and a reader's ways in them."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT

ARTIFACTS = ROOT / "artifacts" / "browser"
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # all cells are there to be looked at
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}


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


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium(), args=quiet)
        yield chrome
        chrome.close()


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """Start a Jupyter server on copies of the notebooks: its address for a path."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".*"))
    for name, content in SETTINGS.items():
        path = folder / "config/lab/user-settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    started = []

    def start(*command: str, profile: str = "quick"):
        env = os.environ | {"SWARMKV_PROFILE": profile, "JUPYTER_CONFIG_DIR": str(folder / "config")}
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


@pytest.fixture(scope="session")
def lab(serve):
    return serve("jupyterlab")


@pytest.fixture(scope="session")
def lab_in_smoke(serve):
    """Where notebooks measure next to nothing: for what is looked at after they have run."""
    return serve("jupyterlab", profile="smoke")


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
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # before, JupyterLab asks which kernel is to run it


def choose(page, menu: str, entry: str) -> None:
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.get_by_text(entry, exact=True).click()


def open_and_run(page, lab, name: str) -> None:
    """Open a notebook, clear what is committed, choose Run, Run All Cells, and look at all of it."""
    open_notebook(page, lab, name)
    prompts = "[...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')].map(cell => cell.innerText)"
    choose(page, "Edit", "Clear Outputs of All Cells")
    page.wait_for_function(f"() => {prompts}.every(text => !/\\d/.test(text))")
    choose(page, "Run", "Run All Cells")
    page.wait_for_function(f"() => {prompts}.every(text => /\\d/.test(text))", timeout=240_000)
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


def violations(page, context: str | None = None) -> list[str]:
    """What axe finds wrong in a page, or in a part of it, and calls serious."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, context=context, options={"resultTypes": ["violations"]}).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]


def errors(page) -> list[str]:
    found = page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()
    return found + page.locator(".jupyter-widgets [role=alert]").all_inner_texts()
