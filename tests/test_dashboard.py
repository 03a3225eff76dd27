"""The notebooks as pages, and as working copies."""

import base64
import re
from html.parser import HTMLParser

import pytest
from conftest import ROOT

from swarmkv_studies import sizing_explorer
from swarmkv_studies.cli.notebooks import project_notebooks
from swarmkv_studies.cli.pages import write_pages
from swarmkv_studies.cli.working_copies import copy_notebooks

NAMES = [path.stem for path in project_notebooks()]


class Seen(HTMLParser):
    """The links and the pictures of a page."""

    def __init__(self, html):
        super().__init__()
        self.links, self.alts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "a":
            self.links.append(dict(attrs)["href"].split("#")[0])
        if tag == "img":
            self.alts.append(dict(attrs).get("alt"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    write_pages(project_notebooks(), folder, "explorers.ipynb")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_the_committed_outputs_and_all_its_links(site, name):
    html = (site / f"notebooks/{name}.html").read_text(encoding="utf-8")
    seen = Seen(html)
    assert seen.alts  # every notebook has pictures
    assert all(alt.startswith("Figure: ") and len(alt) > 12 for alt in seen.alts)
    assert "swarmkv_lab" in html  # the code, which exercises ask for
    assert "model not found" not in html.lower()
    assert "$$" not in html  # formulas need no script from elsewhere
    assert "<script" not in html
    for link in seen.links:
        if "://" not in link:
            assert (site / "notebooks" / link).is_file() or (ROOT / "notebooks" / link).is_file(), link


def test_the_index_leads_to_every_page(site):
    html = (site / "index.html").read_text(encoding="utf-8")
    links = Seen(html).links
    assert [link for link in links if link.startswith("notebooks/")] == [f"notebooks/{name}.html" for name in NAMES]
    others = [link for link in links if not link.startswith(("notebooks/", "../voila/"))]
    assert others
    assert all((ROOT / link).is_file() for link in others)
    assert "prefix_seq_len?" in html  # titles, without their markup


def test_working_copies_follow_their_originals_until_the_reader_changes_them(tmp_path):
    folder, work = tmp_path / "notebooks", tmp_path / "work"
    folder.mkdir()
    mine, theirs = folder / "mine.ipynb", folder / "theirs.ipynb"
    for path in (mine, theirs):
        path.write_text("first")
    copies = [mine, theirs]
    assert copy_notebooks(copies, work) == []
    (work / mine.name).write_text("the reader's")
    assert copy_notebooks(copies, work) == []  # nothing to say: the original is still the one that was copied
    assert (work / mine.name).read_text() == "the reader's"
    for path in (mine, theirs):
        path.write_text("second")
    assert copy_notebooks(copies, work) == [mine.name]
    assert (work / mine.name).read_text() == "the reader's"
    assert (work / theirs.name).read_text() == "second"
    (work / mine.name).unlink()
    assert copy_notebooks(copies, work) == []
    assert (work / mine.name).read_text() == "second"


def test_an_export_links_to_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr("swarmkv_studies.common.widgets.explorer.RUNS", tmp_path)
    explorer = sizing_explorer()
    paths = explorer.export()
    links = re.findall(r'<a download="([^"]+)" href="data:[^,]*;base64,([^"]+)">', explorer.exported.value)
    assert [(name, base64.b64decode(data)) for name, data in links] == [
        (path.name, path.read_bytes()) for path in paths
    ]
