"""Figures: drawn from tables alone, saved as PNG and SVG, the same each time."""

import pytest

import swarmkv_lab as lab
from swarmkv_lab import figures
from swarmkv_lab.measure.bench import bench


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
    return {
        "timeline": figures.timeline({name: timelines[name] for name in ("naive", "shared")}, "small print"),
        "all timelines": figures.timeline(timelines),
        "strategies": figures.strategies(report["summary"], "small print"),
        "broadcast": figures.broadcast(),
    }


def test_every_figure_is_saved_and_drawn_alike_again(measured, tmp_path):
    redrawn = drawn(measured)
    for name, figure in drawn(measured).items():
        first = [path.read_bytes() for path in figures.save(figure, tmp_path, name)]
        again = [path.read_bytes() for path in figures.save(redrawn[name], tmp_path, name)]
        assert [len(data) > 5000 for data in first] == [True, True], name
        assert first[0] == again[0], name


def test_models_that_do_not_fill_the_grid_leave_no_empty_axes():
    names = ["qwen2.5-7b", "llama-3.1-8b", "gpt-oss-20b"]
    figure = figures.agents_that_fit(lab.agents_by_budget(names, [16], 1024), 1024)
    assert [ax.axison for ax in figure.axes] == [True, True, True, False]


def test_the_timeline_has_a_lane_an_agent_and_its_factor_in_the_title(measured):
    _, runs = measured
    figure = drawn(measured)["timeline"]
    lanes = [[label.get_text() for label in ax.get_yticklabels()] for ax in figure.axes]
    assert lanes == [["a", "b", "c"], ["prefix", "a", "b", "c"], ["a", "b", "c"]]  # the last is the close-up
    ends = {run.strategy: run.timeline.end_ms.max() for run in runs}
    assert f"{ends['naive'] / ends['shared']:.2f}x" in figure.legends[0].get_title().get_text()
