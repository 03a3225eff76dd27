"""Figures: drawn from tables alone, saved as PNG and SVG, the same each time."""

import pandas as pd
import pytest
from matplotlib.text import Text

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_studies.common.bench import bench
from swarmkv_studies.common.summary import race_table


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    import numpy as np
    from conftest import load_shape

    tokens = np.random.default_rng(0).integers(0, 256, 60)
    with load_shape("two layers", tmp_path_factory.mktemp("twin")) as model:
        agents = {"a": tokens[:3], "b": tokens[:5], "c": tokens[:7]}
        return bench(model, tokens, depth=60, n_agents=3, strategies=list(lab.STRATEGIES), repeats=1, agents=agents)


def drawn(measured):
    report, runs = measured
    timelines = {run.strategy: run.timeline for run in runs}
    small = lab.geometry("smollm2-135m")
    return {
        "timeline": studies.timeline({name: timelines[name] for name in ("naive", "shared")}, "small print"),
        "all timelines": studies.timeline(timelines),
        "strategies": studies.strategies(report["summary"], "small print"),
        "snapshot_layout": studies.snapshot_layout(lab.SequenceState.predicted(small, 3501).parts),
    }


def test_every_figure_is_drawn_and_saved_alike_again(measured, tmp_path):
    figures, redrawn = drawn(measured), drawn(measured)
    for figure in (*figures.values(), redrawn["timeline"]):  # a layout that is made twice may move by a pixel
        figure.draw_without_rendering()
    first, again = (
        [path.read_bytes() for path in studies.save(made["timeline"], tmp_path, "one")] for made in (figures, redrawn)
    )
    assert [len(data) > 5000 for data in first] == [True, True]
    assert first[0] == again[0]


def test_the_timeline_has_a_lane_an_agent_and_its_factor_in_the_title(measured):
    _, runs = measured
    figure = drawn(measured)["timeline"]
    lanes = [[label.get_text() for label in ax.get_yticklabels()] for ax in figure.axes]
    assert lanes == [["a", "b", "c"], ["prefix", "a", "b", "c"], ["a", "b", "c"]]  # the last is the close-up
    ends = {run.strategy: run.timeline.end_ms.max() for run in runs}
    assert f"{ends['naive'] / ends['shared']:.2f}x" in figure.legends[0].get_title().get_text()


def test_the_timeline_says_how_far_its_prefills_differ(measured):
    span = {"agent": "a", "phase": "prefill", "start_ms": 0.0, "end_ms": 1000.0}
    naive = pd.DataFrame([span, {**span, "agent": "b", "start_ms": 1000.0, "end_ms": 2500.0}])
    once = pd.DataFrame([span, {**span, "phase": "branch", "start_ms": 1000.0, "end_ms": 1100.0}])
    figure = studies.timeline({"naive": naive, "shared": once})
    assert "2.27x" in figure.get_label()
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[:2] == [
        "naive: 2.5 s, of which each prefill 1.0 to 1.5 s",
        "shared: 1.1 s, of which its prefill 1.0 s",
    ]


def test_a_races_table_has_whole_bytes_and_the_spread_of_its_prefills(measured):
    table = race_table(pd.DataFrame([run.metrics for run in measured[1]]))
    assert table.loc["KV memory held, bytes"].str.fullmatch(r"[\d,]+").all()
    spread = table.loc["prefill against the shortest"].astype(float)
    assert spread.min() == 1.0
    prefills = {run.strategy: run.metrics["prefill_ms"] for run in measured[1]}
    assert spread["naive"] == pytest.approx(prefills["naive"] / min(prefills.values()), abs=0.006)


def test_every_model_has_its_name_and_no_name_lies_on_another():
    frame = studies.catalogue_bytes(8192)
    figure = studies.bytes_per_token(frame, 8192, "small print")
    figure.draw_without_rendering()
    names = {text.get_text(): Text.get_window_extent(text) for text in figure.axes[0].texts}
    assert set(names) == set(frame.index)
    for one, box in names.items():
        inner = box.padded(-1)
        assert not [other for other, its in names.items() if other != one and inner.overlaps(its)], one
