"""The book: every link in it leads somewhere, its pages are fit to read, and its explorer computes as Python does.

Fit to read: on a phone and on a desk nothing is cut off, nothing fails, nothing is from elsewhere, axe finds nothing.
"""

import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from urllib.parse import unquote, urlsplit

import lxml.html
import pytest
from browsing import ARTIFACTS, violations
from conftest import ROOT

import swarmkv_lab as lab
from swarmkv_lab.sizing.catalogue import catalogue, geometry
from swarmkv_lab.sizing.geometry import KV_TYPES
from swarmkv_studies.book.gallery import EXHIBITS
from swarmkv_studies.common.costmodel import CostModel
from swarmkv_studies.common.measurements import measurements
from swarmkv_studies.kv_sizing.memory import LAYOUTS, agents_bytes
from swarmkv_studies.many_machines.shipping import break_even_bandwidth

PAGES = ("book/index", "book/figures", "book/glossary", "book/api", "notebooks/00_tour", "README", "figures/explorer")
DEPTHS, AGENTS = (1, 128, 3501, 5000, 131_072), (1, 2, 7, 64)
LINKS, PREFILLS = (625e3, 125e6), (10.0, 806.9)

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def book():
    """make book, with this Python in place of .venv's."""
    command = ["make", "--no-print-directory", "-o.venv/.book", f"BIN={Path(sys.executable).parent}", "book"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return ROOT / "artifacts/book"


def test_every_link_inside_the_book_leads_somewhere(book):
    pages = {path: lxml.html.parse(path).getroot() for path in book.rglob("*.html") if "_static" not in path.parts}
    anchors = {path: {*page.xpath("//@id | //@name")} for path, page in pages.items()}
    broken = []
    for path, link in [(path, link) for path, page in pages.items() for link in page.xpath("//@href | //@src")]:
        parts = urlsplit(link)
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        is_there = target.is_file() and unquote(parts.fragment) in {"", *anchors.get(target, [unquote(parts.fragment)])}
        if link and not (parts.scheme or parts.netloc or is_there):
            broken.append((path.relative_to(book).as_posix(), link))
    assert broken == []
    assert {book / f"notebooks/{source.stem}.html" for source in ROOT.glob("notebooks/*.ipynb")} <= {*pages}


def test_no_page_asks_another_host_for_anything(book):
    """Scripts, styles, fonts and pictures. A formula, say, would bring MathJax from elsewhere."""
    pages = [path for path in book.rglob("*.html") if "_static" not in path.parts]
    links = [link for path in pages for link in lxml.html.parse(path).xpath("//@src | //link/@href | //object/@data")]
    styles = [link for path in book.rglob("*.css") for link in re.findall(r"(?:url\(|@import)[^;)]*", path.read_text())]
    assert [link for link in links if urlsplit(link).netloc] + [link for link in styles if "//" in link] == []


def test_every_public_name_is_explained_and_every_exhibit_shown(book):
    ids = " ".join(lxml.html.parse(book / "book/api.html").xpath("//@id")) + " "
    rooms = {path.stem for path in (ROOT / "swarmkv_lab").iterdir()}
    assert [name for name in {*lab.__all__} - rooms if f".{name} " not in ids] == []
    assert all(f"swarmkv_lab.{name} " in ids for name in ("cluster.fan_out", "serve.server.Server", "Model.read"))
    alts = lxml.html.parse(book / "book/figures.html").xpath("//img/@alt")
    assert [alt for alt in alts if alt] == [exhibit.alt for exhibit in EXHIBITS]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_fit_to_read(book, page, name):
    failed = watched(page)
    sizes = [{"width": width, "height": 900} for width in (390, 1280)]
    for size in sizes:
        page.set_viewport_size(size)
        page.goto((book / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        page.screenshot(path=ARTIFACTS / f"book.{Path(name).name}.{size['width']}.png", full_page=True)
    assert failed == []
    schemes = ("light", "dark") if name == "figures/explorer" else ("light",)  # figures are drawn on white
    for size, scheme in product(sizes, schemes):  # last: axe asks for style sheets, which a file's page may not
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size(size)
        page.reload()
        assert violations(page) == []


def test_the_front_door_leads_to_the_explorer_which_follows_the_keyboard(book, page):
    failed = watched(page)
    page.goto((book / "index.html").as_uri())
    page.wait_for_url("**/book/index.html")
    page.get_by_role("link", name="An explorer").click()
    page.wait_for_url("**/figures/explorer.html")
    panels = {"tokens": "latency", "agents": "memory", "model": "memory", "type": "memory", "mbit": "shipping",
              "speed": "shipping"}  # fmt: skip
    page.locator("header a").last.focus()
    for control, panel in panels.items():
        page.keyboard.press("Tab")
        assert page.evaluate("[document.activeElement.id, document.activeElement.labels.length]") == [control, 1]
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        before = page.locator(f"#{panel}-numbers").inner_text()
        page.keyboard.press("ArrowDown" if control in ("model", "speed") else "ArrowUp")
        assert page.locator(f"#{panel}-numbers").inner_text() != before, control
    assert page.locator("#tokens").get_attribute("aria-valuetext") == page.locator("#tokens-value").inner_text()
    assert not {"NaN", "undefined"} & {*page.inner_text("main").split()}
    assert failed == []


def test_the_explorer_computes_as_python_does(book, page):
    """Bytes exactly, times to 1e-9."""
    page.goto((book / "figures/explorer.html").as_uri())

    def asked(name, cases):
        said = page.evaluate("([f, cases]) => cases.map(given => swarmkv[f](...given))", [name, cases])
        return zip(cases, said, strict=True)

    model, shapes = CostModel.fit(measurements("reference").grid), {name: geometry(name) for name in catalogue().index}
    for (name, depth, agents), said in asked("predict", list(product(model.strategies, DEPTHS, AGENTS))):
        row = model.predict([depth], [agents], [name]).iloc[0]
        assert said == pytest.approx({"ttft": row.last_ttft_ms, "endToEnd": row.end_to_end_ms}, rel=1e-9)
    for given, said in asked("agentsBytes", list(product(shapes, DEPTHS, AGENTS, KV_TYPES))):
        name, depth, agents, kv_type = given
        how = {"n_tokens": depth, "n_agents": agents, "kv_type": kv_type}
        assert said == {layout: agents_bytes(shapes[name], layout=layout, **how) for layout in LAYOUTS}, given
    for given, said in asked("ship", list(product(shapes, DEPTHS, KV_TYPES, LINKS, PREFILLS))):
        name, depth, kv_type, bandwidth, prefill = given
        nbytes, compute = shapes[name].snapshot_bytes(depth, kv_type), depth / prefill
        assert said.pop("bytes") == nbytes, given
        times = {"compute": compute, "load": nbytes / bandwidth}
        times["breakEven"] = break_even_bandwidth(shapes[name], depth, prefill, kv_type)
        assert said == pytest.approx(times, rel=1e-9), given


def watched(page):
    """What goes wrong in a page from now on, and what it asks others for."""
    failed = []
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: failed.append(request.url) if request.url.startswith("http") else None)
    return failed
