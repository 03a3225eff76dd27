"""Figures and exhibits: drawn from tables alone, saved the same each time, with the tables' numbers; and committed."""

import json
import re

import pandas as pd
import pytest
from conftest import ROOT

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_studies.book import gallery
from swarmkv_studies.book.explorer import explorer
from swarmkv_studies.book.gallery import EXHIBITS
from swarmkv_studies.common.measurements import Measurements, measurements
from swarmkv_studies.common.summary import race_table


def race():
    naive = [("a", "prefill", 0.0, 1000.0), ("b", "prefill", 1000.0, 2500.0)]
    once = [("prefix", "prefill", 0.0, 1000.0), ("a", "branch", 1000.0, 1050.0), ("b", "branch", 1050.0, 1100.0)]
    columns = ["agent", "phase", "start_ms", "end_ms"]
    runs = {"naive": naive, "shared": once}
    return studies.timeline({name: pd.DataFrame(spans, columns=columns) for name, spans in runs.items()})


def test_the_timeline_has_a_lane_an_agent_its_factor_and_how_far_its_prefills_differ():
    figure = race()
    assert "2.27x" in figure.get_label()
    lanes = [[label.get_text() for label in ax.get_yticklabels()] for ax in figure.axes]
    assert lanes == [["a", "b"], ["prefix", "a", "b"], ["a", "b"]]  # the last is the close-up
    assert "1.0 to 1.5 s" in figure.axes[0].get_title(loc="left")


def test_a_figure_is_saved_alike_again(tmp_path):
    first, again = ([path.read_bytes() for path in studies.save(race(), tmp_path, "one")] for _ in range(2))
    assert [len(data) > 5000 for data in first] == [True, True]
    assert first[0] == again[0]


def test_a_races_table_has_whole_bytes_and_the_spread_of_its_prefills(twin, document, question):
    runs = [lab.fan_out(twin, document, [question], name, max_tokens=1).metrics for name in lab.STRATEGIES]
    table = race_table(pd.DataFrame(runs))
    assert table.loc["KV memory held, bytes"].str.fullmatch(r"[\d,]+").all()
    prefills = {run["strategy"]: run["prefill_ms"] for run in runs}
    expected = {name: ms / min(prefills.values()) for name, ms in prefills.items()}
    assert table.loc["prefill against the shortest"].astype(float).to_dict() == pytest.approx(expected, abs=0.006)


# -- the exhibits


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_an_exhibit_is_drawn_described_and_committed(exhibit):
    figure = exhibit.draw(measurements("reference"))
    assert figure.get_label()
    if exhibit.name != "idea":  # a drawing, of no numbers
        assert "llama.cpp" in figure.get_supxlabel() or "predicted from" in figure.get_supxlabel()
    figure.draw_without_rendering()
    for legend in figure.legends:  # the message and the key are inside the picture
        assert legend.get_window_extent().x1 <= figure.bbox.width + 1
    assert len(exhibit.alt) > 40
    assert all((ROOT / "figures" / f"{exhibit.name}.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))
    assert (ROOT / (exhibit.data if exhibit.of_reference else f"data/reference/{exhibit.data}")).exists()


def test_figures_of_a_grid_are_of_the_depths_and_agents_that_were_measured():
    grid = measurements("reference").grid
    few = grid[(grid.depth != 1024) & grid.n_agents.isin([2, 8])]
    for figure in (studies.latency(few), studies.speedup_map(few), studies.packing(few), studies.worth(few, 16)):
        figure.draw_without_rendering()
        assert figure.get_label()


def test_draw_writes_each_exhibit_twice_and_the_explorer_with_a_link_to_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "EXHIBITS", EXHIBITS[:1])
    written = gallery.draw(measurements("reference"), tmp_path / "figures")
    assert [path.name for path in written] == ["idea.png", "idea.svg", "explorer.html"]
    link = re.search(r'<a href="(.*README.md)">', written[-1].read_text(encoding="utf-8"))[1]
    assert (tmp_path / "figures" / link).resolve() == ROOT / "data/README.md"


def test_the_committed_explorer_has_the_numbers_and_the_words_that_the_code_writes():
    def parts(html):
        constants = re.search(r"^const constants = (.*);$", html, re.MULTILINE)
        return html.replace(constants[0], ""), json.loads(constants[1], parse_float=lambda text: f"{float(text):.6g}")

    committed = (ROOT / "figures/explorer.html").read_text(encoding="utf-8")
    # the last digits of the fitted coefficients are those of a machine's linear algebra
    assert parts(committed) == parts(explorer(measurements("reference"), "../data/README.md"))


def test_what_was_not_measured_is_said(tmp_path):
    with pytest.raises(lab.SwarmKVError, match=r"grid\.csv"):
        _ = Measurements(tmp_path).grid
    with pytest.raises(lab.SwarmKVError, match="theirs"):
        measurements("theirs")
