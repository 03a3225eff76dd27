"""make dashboard and make lab as a reader meets them, in a checkout of their own and in a real Chromium."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import nbformat
import pandas as pd
import pytest
from browsing import ARTIFACTS, SETTINGS, errors, free_port, violations
from conftest import ROOT

from swarmkv_studies.cli.notebooks import project_notebooks

PAGES = ["index", *(f"notebooks/{path.stem}" for path in project_notebooks())]
NOT_TRACKED = (".git", ".venv", ".*_cache", "__pycache__", "my_notebooks", "runs", "artifacts", "tests")

pytestmark = [pytest.mark.browser, pytest.mark.real]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the project, committed to git."""
    folder = tmp_path_factory.mktemp("checkout") / "lab"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_TRACKED))
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=Reader", "-c", "user.email=reader@example.org", "commit", "--quiet", "-m", "all")
    return folder


@pytest.fixture(scope="module")
def make(checkout, tmp_path_factory):
    """Start a recipe of the Makefile with this environment: the last line that it prints, its address."""
    started = []

    def start(target: str) -> str:
        config, log = tmp_path_factory.mktemp("config"), checkout.parent / f"{target}.txt"
        server = {"ServerApp": {"allow_root": True, "open_browser": False, "port": free_port()}}
        (config / "jupyter_server_config.json").write_text(json.dumps(server))
        for name, content in SETTINGS.items():
            path = config / "lab/user-settings" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        done = [f"-o{sys.prefix}/{name}" for name in (".ready", ".dashboard", ".browser")]
        env = os.environ | {"JUPYTER_CONFIG_DIR": str(config), "PYTHONPATH": str(checkout)}
        with log.open("w") as out:
            started.append(
                subprocess.Popen(
                    ["make", target, f"VENV={sys.prefix}", *done], cwd=checkout, env=env, stdout=out,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )
            )  # fmt: skip
        for _ in range(900):
            if found := re.findall(r"http://127\S+token=\w{9,}", log.read_text()):
                return found[-1]
            if started[-1].poll() is not None:
                break
            time.sleep(0.1)
        pytest.fail(f"make {target} did not start: {log.read_text()[-2000:]}")

    yield start
    for server in started:
        os.killpg(server.pid, 15)
        server.wait(20)


@pytest.fixture(scope="module")
def dashboard(make, checkout):
    address = make("dashboard")
    assert (checkout.parent / "dashboard.txt").read_text().split()[-1] == address
    return address


def git(folder, *command: str) -> str:
    return subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_pages_show_their_outputs_at_once(page, dashboard):
    page.goto(dashboard)
    assert page.get_by_role("link", name="00 · Tour").is_visible()
    for scheme, pages in {"light": PAGES[::2], "dark": PAGES[1::2]}.items():  # index, 01, ... and 00, 02, ...
        page.emulate_media(color_scheme=scheme)
        for name in pages:
            page.goto(dashboard.replace("index.html", f"{name}.html"))
            assert page.evaluate("[...document.images].every(e => e.complete && e.naturalWidth > 0)")
            assert violations(page) == [], (name, scheme)
            for width in (390, 800, 1400):
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
                if name in PAGES[:3]:
                    page.screenshot(path=ARTIFACTS / f"dashboard.{name.split('/')[-1]}.{width}.png")
    width, size = page.evaluate(
        "p => [p.clientWidth, parseFloat(getComputedStyle(p).fontSize)]", page.query_selector("p")
    )
    assert width / size < 45  # em: about 90 characters


def test_links_lead_to_data_and_figures(page, dashboard):
    page.goto(dashboard)
    page.get_by_role("link", name="06 · ").click()
    page.locator("a[href$='dossier.pipeline.toml']").click()
    assert 'after = ["security", ' in page.inner_text("body")
    page.goto(dashboard)
    page.get_by_role("link", name="All figures").click()
    assert page.get_by_role("heading", name="figures").first.is_visible()
    page.goto(dashboard.replace("index.html", "notebooks/00_tour.ipynb"))  # as figures/ may link to it
    assert page.url.split("?")[0].endswith("notebooks/00_tour.html")


def test_only_who_has_the_token_reads_pages(browser, dashboard):
    page = browser.new_page()
    page.goto(dashboard.split("?")[0])
    assert "/login" in page.url
    page.close()


def test_live_explorers_start_without_measuring(page, dashboard):
    page.goto(dashboard)
    page.get_by_role("link", name="Explorers").click()
    page.get_by_role("button", name="Run", exact=True).nth(1).wait_for()
    page.get_by_role("button", name="Export").nth(4).wait_for()
    assert page.locator(".jupyter-widgets img").count() == 3  # sizes, latencies, keys and values; no timeline
    assert "model not found" not in page.inner_text("body")
    assert page.locator(".traceback, [role=alert]").count() == 0
    page.screenshot(path=ARTIFACTS / "dashboard.explorers.png")
    assert violations(page) == []
    assert_an_export_arrives(page, "sizing")
    page.get_by_role("link", name="All notebooks").click()
    page.get_by_role("link", name="00 · Tour").wait_for()


def test_a_working_copy_runs_exports_and_leaves_git_clean(page, make, checkout):
    cell = nbformat.v4.new_code_cell("from swarmkv_lab import widgets\nwidgets.sizing_explorer()")
    (checkout / "my_notebooks").mkdir()
    python = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=python), checkout / "my_notebooks/mine.ipynb")
    address = make("lab").replace("?", "?reset&")
    page.goto(address)
    run_first_cell(page)
    page.screenshot(path=ARTIFACTS / "lab.png")
    page.keyboard.press("Control+s")
    for _ in range(100):
        if (checkout / "my_notebooks/00_tour.ipynb").read_bytes() != (
            checkout / "notebooks/00_tour.ipynb"
        ).read_bytes():
            break
        page.wait_for_timeout(100)
    else:
        pytest.fail("the working copy was not saved")

    page.goto(address.replace("00_tour", "06_pipeline"))
    page.locator(".jp-Notebook a[href*='dossier.pipeline.toml']").click()
    page.get_by_role("tab", name="dossier.pipeline.toml").wait_for()  # opened, beside the notebook

    page.goto(address.replace("00_tour", "mine"))
    run_first_cell(page)
    assert_an_export_arrives(page, "sizing")
    assert errors(page) == []
    assert git(checkout, "status", "--porcelain") == ""


def run_first_cell(page) -> None:
    """As a reader does it, when JupyterLab says that the kernel waits for it."""
    page.get_by_text("| Idle").wait_for()
    cell = page.locator(".jp-Notebook .jp-CodeCell").first
    cell.click()
    page.keyboard.press("Shift+Enter")
    cell.get_by_text("[1]:").first.wait_for()


def assert_an_export_arrives(page, name: str) -> None:
    page.get_by_role("button", name="Export").first.click()
    with page.expect_download() as waiting:
        page.get_by_role("link", name=re.compile(rf"{name}-\d+\.csv")).click()
    table = pd.read_csv(waiting.value.path())
    assert waiting.value.suggested_filename.startswith(name)
    assert len(table) > 1
