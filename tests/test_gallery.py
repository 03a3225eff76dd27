"""The gallery: every figure from the reference data, named, captioned, described, and the committed ones are these."""

import html.parser

import pytest
from conftest import ROOT

from swarmkv_lab import figures
from swarmkv_lab.analysis.measurements import Measurements, measurements
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.figures import gallery


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "a":
            self.links.append(dict(attrs)["href"])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Every exhibit, drawn and saved once: the folder, the paths, and the figures by name."""
    folder, kept, save = tmp_path_factory.mktemp("figures"), {}, figures.save

    def keep(figure, into, name):
        kept[name] = figure
        return save(figure, into, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", keep)
        paths = gallery.draw(measurements("reference"), folder)
    return folder, paths, kept


def test_every_figure_is_drawn_and_on_the_page(drawn):
    folder, paths, _ = drawn
    assert all(path.stat().st_size > 1000 for path in paths)
    page = Page((folder / "index.html").read_text())
    assert [image["src"] for image in page.images] == [path.name for path in paths[:-1]]
    assert all(len(image["alt"]) > 40 for image in page.images)
    assert all((folder / link).is_file() for link in page.links)


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


def test_every_exhibit_is_committed_and_on_the_committed_page():
    for exhibit in gallery.EXHIBITS:
        for ending in ("png", "svg"):
            assert (ROOT / "figures" / f"{exhibit.name}.{ending}").is_file(), exhibit.name
    assert (ROOT / "figures/index.html").read_text() == gallery._page()


def test_what_was_not_measured_is_said(tmp_path):
    with pytest.raises(SwarmKVError, match=r"no grid.csv in .*: run make reproduce"):
        _ = Measurements(tmp_path).grid
    with pytest.raises(SwarmKVError, match="not 'theirs'"):
        measurements("theirs")
