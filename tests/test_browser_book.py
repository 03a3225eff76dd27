"""The book: make book builds it without a warning, every link in it leads somewhere, and its pages are fit to read."""

import html.parser
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browsing import ARTIFACTS, violations
from conftest import ROOT

SITE = ROOT / "artifacts/book"
PAGES = ("book/index", "book/glossary", "book/api", "notebooks/00_tour", "notebooks/03_naive_vs_fanout", "README")
WIDTHS = (390, 1280)

pytestmark = pytest.mark.browser


class Page(html.parser.HTMLParser):
    """A page's ids, and what it leads to."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs.get("id"), attrs.get("name")}
        self.links += [attrs[key] for key in ("href", "src") if attrs.get(key)]


@pytest.fixture(scope="module")
def book():
    """make book, with this Python in place of .venv's."""
    command = ["make", "--no-print-directory", "-o.venv/.book", f"BIN={Path(sys.executable).parent}", "book"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return SITE


def test_every_link_inside_the_book_leads_somewhere(book):
    pages = {path: Page(path) for path in book.rglob("*.html") if "_static" not in path.parts}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].ids):
                broken.append((path.relative_to(book).as_posix(), link))
    assert broken == []
    for source in ROOT.glob("notebooks/*.ipynb"):
        assert (book / f"notebooks/{source.stem}.html") in pages


def test_every_public_name_is_explained(book):
    import swarmkv_lab as lab

    ids = Page(book / "book/api.html").ids
    names = [name for name in lab.__all__ if not hasattr(getattr(lab, name), "__path__")]
    files = ("errors", "files")
    missing = [name for name in names if name not in files and not any(f"{i}".endswith(f".{name}") for i in ids)]
    assert missing == []
    assert {"swarmkv_lab.cluster.fan_out", "swarmkv_studies.tour.race", "swarmkv_lab.figures.timeline"} <= ids


def test_the_front_door_leads_to_the_first_page_and_on_to_the_explorer(book, page):
    failed = watched(page)
    page.goto((book / "index.html").as_uri())
    page.wait_for_url("**/book/index.html")
    page.get_by_role("link", name="an explorer").click()
    page.wait_for_url("**/figures/explorer.html")
    assert page.locator("#latency-chart svg, svg#latency-chart").count()
    page.goto((book / "figures/index.html").as_uri())
    page.locator("a[href$='00_tour.html']").first.click()
    page.wait_for_url("**/notebooks/00_tour.html")
    assert failed == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_fit_to_read(book, page, name):
    """On a phone and on a desk: nothing is cut off, nothing fails, nothing comes from elsewhere; axe finds nothing."""
    failed = watched(page)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.goto((book / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width
        page.screenshot(path=ARTIFACTS / f"book.{Path(name).name}.{width}.png", full_page=True)
    assert failed == []
    for width in WIDTHS:  # last: axe asks for style sheets, which a file's page may not, and is told so at some time
        page.set_viewport_size({"width": width, "height": 900})
        page.reload()
        assert violations(page) == []


def watched(page):
    """What goes wrong in a page from now on, and what it asks others for."""
    failed = []
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: failed.append(request.url) if request.url.startswith("http") else None)
    return failed
