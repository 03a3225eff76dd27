"""The gallery: every figure from the reference data, named, captioned, described, and the committed ones are these."""

import html.parser
import re
from itertools import pairwise

import pytest
from conftest import ROOT
from PIL import Image

from swarmkv_lab.errors import SwarmKVError
from swarmkv_studies.book import gallery
from swarmkv_studies.common.measurements import Measurements, measurements


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.headings, self.ids, self.tags = [], [], [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.setdefault(tag, attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "img":
            self.images.append(attrs)
        if tag == "a":
            self.links.append(attrs["href"])
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(tag[1]))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Every exhibit, drawn and saved once: the folder, the paths, and the figures by name."""
    folder, kept, save = tmp_path_factory.mktemp("figures"), {}, gallery.save

    def keep(figure, into, name):
        kept[name] = figure
        return save(figure, into, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "save", keep)
        paths = gallery.draw(measurements("reference"), folder)
    return folder, paths, kept


def test_every_figure_is_drawn_and_on_the_page(drawn):
    folder, paths, _ = drawn
    assert all(path.stat().st_size > 1000 for path in paths)
    page = Page((folder / "index.html").read_text())
    pictures = [path for path in paths if path.suffix == ".png"]
    assert [image["src"] for image in page.images] == [path.name for path in pictures]
    assert [(int(image["width"]), int(image["height"])) for image in page.images] == [
        Image.open(path).size for path in pictures
    ]
    assert all(len(image["alt"]) > 40 for image in page.images)


def test_the_page_has_an_outline_and_its_links_lead_somewhere():
    page = Page((ROOT / "figures/index.html").read_text())
    assert page.tags["html"] == {"lang": "en"}
    assert "main" in page.tags
    assert len(set(page.ids)) == len(page.ids)
    assert page.headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(page.headings))
    assert {f"#{name}" for exhibit in gallery.EXHIBITS for name in (exhibit.name, exhibit.notebook)} <= {*page.links}
    for link in page.links:
        assert link[1:] in page.ids if link[0] == "#" else (ROOT / "figures" / link).is_file(), link


def test_the_pages_questions_are_those_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    for name, question in gallery._NOTEBOOKS.items():
        assert f"| [{name}](notebooks/{name}.ipynb) | {question}" in readme.replace("`", ""), name


@pytest.mark.parametrize("exhibit", gallery.EXHIBITS, ids=lambda e: e.name)
def test_every_figure_says_its_message_and_where_it_was_measured(exhibit, drawn):
    figure = drawn[2][exhibit.name]
    if exhibit.name != "broadcast":  # a drawing of the idea
        assert figure.get_label()
        assert "llama.cpp" in figure.get_supxlabel() or "predicted from" in figure.get_supxlabel()
        figure.draw_without_rendering()
        width = figure.bbox.width
        for legend in figure.legends:  # the message and the key are inside the picture
            assert legend.get_window_extent().x1 <= width + 1, figure.get_label()


def test_every_exhibit_is_committed_and_on_the_committed_page(drawn):
    for exhibit in gallery.EXHIBITS:
        for ending in ("png", "svg"):
            assert (ROOT / "figures" / f"{exhibit.name}.{ending}").is_file(), exhibit.name
    assert (ROOT / "figures/index.html").read_text() == (drawn[0] / "index.html").read_text()


def test_the_committed_explorer_is_what_the_code_writes(drawn):
    def rounded(path):  # the last digits of the fitted coefficients are those of a machine's linear algebra
        return re.sub(r"\d+\.\d+(e-?\d+)?", lambda number: f"{float(number[0]):.6g}", path.read_text(encoding="utf-8"))

    assert rounded(ROOT / "figures/explorer.html") == rounded(drawn[0] / "explorer.html")


def test_what_was_not_measured_is_said(tmp_path):
    with pytest.raises(SwarmKVError, match=r"no grid.csv in .*: run make reproduce"):
        _ = Measurements(tmp_path).grid
    with pytest.raises(SwarmKVError, match="not 'theirs'"):
        measurements("theirs")
