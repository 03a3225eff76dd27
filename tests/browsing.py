"""What the browser's tests share: make lab in a checkout of its own, a real Chromium, and a reader's ways in them."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT

ARTIFACTS = ROOT / "artifacts/browser"  # screenshots
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # all cells are there to be looked at
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}
NOT_TRACKED = (".git", ".venv", ".*_cache", "__pycache__", "my_notebooks", "runs", "artifacts")


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.fail("no Chromium: install Debian's chromium, or set CHROMIUM to a browser's path")
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=path, args=quiet)
        yield chrome
        chrome.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    page.set_default_timeout(60_000)
    yield page
    page.close()


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """A copy of the project, committed to git."""
    folder = tmp_path_factory.mktemp("checkout") / "lab"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_TRACKED))
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=Reader", "-c", "user.email=reader@example.org", "commit", "--quiet", "-m", "all")
    return folder


@pytest.fixture(scope="session")
def lab(checkout, tmp_path_factory):
    """make lab, with this Python in place of .venv's, measuring next to nothing: a notebook's address."""
    config, log = tmp_path_factory.mktemp("config"), checkout.parent / "log.txt"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = {"ServerApp": {"open_browser": False, "port": probe.getsockname()[1]}}
    (config / "jupyter_server_config.json").write_text(json.dumps(server))
    for name, content in SETTINGS.items():
        path = config / "lab/user-settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    env = os.environ | {"JUPYTER_CONFIG_DIR": f"{config}", "PYTHONPATH": f"{checkout}", "SWARMKV_PROFILE": "smoke"}
    command = ["make", "lab", f"VENV={sys.prefix}", f"-o{sys.prefix}/.ready"]
    how = {"cwd": checkout, "env": env, "stderr": subprocess.STDOUT, "start_new_session": True}
    with log.open("w") as out, subprocess.Popen(command, stdout=out, **how) as made:
        try:
            for _ in range(900):
                if found := re.findall(r"http://127\S+token=\w{9,}", log.read_text()):
                    break
                assert made.poll() is None, log.read_text()
                time.sleep(0.1)
            assert log.read_text().split()[-1] == found[-1]  # the last line is its address
            yield lambda name: found[-1].replace("00_tour", name).replace("?", "?reset&")
        finally:
            os.killpg(made.pid, 15)


def git(folder, *command: str) -> str:
    return subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True, text=True).stdout


def open_notebook(page, lab, name: str) -> None:
    """Open a notebook as a reader does."""
    page.goto(lab(name))
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # before, JupyterLab asks which kernel is to run it


def choose(page, menu: str, entry: str) -> None:
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.get_by_text(entry, exact=True).click()


def open_and_run(page, lab, name: str) -> None:
    """Open a notebook, clear what is committed, choose Run, Run All Cells, and wait until all have run or one fails."""
    open_notebook(page, lab, name)
    cells = "[...document.querySelectorAll('.jp-Notebook .jp-CodeCell')]"
    cells += ".filter(cell => cell.querySelector('.cm-content').innerText.trim())"  # an empty one is not counted
    prompts = f"{cells}.map(cell => cell.querySelector('.jp-InputPrompt').innerText)"
    failed = "document.querySelector('[data-mime-type=\"application/vnd.jupyter.error\"]')"
    choose(page, "Edit", "Clear Outputs of All Cells")
    page.wait_for_function(f"() => {prompts}.every(text => !/\\d/.test(text))")
    choose(page, "Run", "Run All Cells")
    page.wait_for_function(f"() => {failed} || {prompts}.every(text => /\\d/.test(text))", timeout=240_000)
    assert errors(page) == []


def errors(page) -> list[str]:
    found = page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()
    return found + page.locator(".jupyter-widgets .swarmkv-error").all_inner_texts()


def violations(page, context: str | None = None) -> list[str]:
    """What axe finds wrong in a page, or in a part of it, and calls serious."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, context=context, options={"resultTypes": ["violations"]}).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]
