"""The exhibits: each is drawn from the reference data, says its message and its source, and is committed."""

import json
import re

import pytest
from conftest import ROOT

from swarmkv_lab.errors import SwarmKVError
from swarmkv_studies.book import gallery
from swarmkv_studies.book.explorer import explorer
from swarmkv_studies.book.gallery import EXHIBITS
from swarmkv_studies.common.measurements import Measurements, measurements


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_an_exhibit_is_drawn_described_and_committed(exhibit):
    figure = exhibit.draw(measurements("reference"))
    assert figure.get_label()
    assert "llama.cpp" in figure.get_supxlabel() or "predicted from" in figure.get_supxlabel()
    figure.draw_without_rendering()
    for legend in figure.legends:  # the message and the key are inside the picture
        assert legend.get_window_extent().x1 <= figure.bbox.width + 1
    assert len(exhibit.alt) > 40
    assert all((ROOT / "figures" / f"{exhibit.name}.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))
    assert (ROOT / (exhibit.data if exhibit.of_reference else f"data/reference/{exhibit.data}")).exists()


def test_draw_writes_each_exhibit_twice_and_the_explorer_with_a_link_to_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "EXHIBITS", EXHIBITS[:1])
    written = gallery.draw(measurements("reference"), tmp_path / "figures")
    assert [path.name for path in written] == ["timeline.png", "timeline.svg", "explorer.html"]
    link = re.search(r'<a href="(.*README.md)">', written[-1].read_text(encoding="utf-8"))[1]
    assert (tmp_path / "figures" / link).resolve() == ROOT / "data/README.md"


def test_a_name_is_given_once_and_a_notebooks_exhibits_stand_together():
    names, notebooks = [exhibit.name for exhibit in EXHIBITS], [exhibit.notebook for exhibit in EXHIBITS]
    assert len({*names}) == len(names)
    assert notebooks == sorted(notebooks)


def test_the_committed_explorer_has_the_numbers_and_the_words_that_the_code_writes():
    def parts(html):
        constants = re.search(r"^const constants = (.*);$", html, re.MULTILINE)
        return html.replace(constants[0], ""), json.loads(constants[1], parse_float=lambda text: f"{float(text):.6g}")

    committed = (ROOT / "figures/explorer.html").read_text(encoding="utf-8")
    # the last digits of the fitted coefficients are those of a machine's linear algebra
    assert parts(committed) == parts(explorer(measurements("reference"), "../data/README.md"))


def test_what_was_not_measured_is_said(tmp_path):
    with pytest.raises(SwarmKVError, match=r"grid\.csv"):
        _ = Measurements(tmp_path).grid
    with pytest.raises(SwarmKVError, match="theirs"):
        measurements("theirs")
