"""A pipeline measured: arms in turns, watermarks and waiting, the critical path."""

import numpy as np
import pandas as pd
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.fanout.pipeline import Agent, Pipeline
from swarmkv_lab.fanout.timeline import critical_path_ms, own_ms
from swarmkv_studies.common.summary import pipeline_table
from swarmkv_studies.pipeline.bench import VARIANTS, compare_pipeline, what_if
from swarmkv_studies.pipeline.tables import early_and_late

AGENTS = [
    lab.Agent("early", [1, 2, 3], prefix_tokens=64, max_tokens=4),
    lab.Agent("whole", [6, 7, 8], max_tokens=5),
    lab.Agent("reviewer", [9], after=["early", "whole"], max_tokens=6),
]


@pytest.fixture
def pipeline(twin, rng):
    return lab.Pipeline(twin, rng.integers(0, 256, 256, dtype=np.int32), AGENTS)


def recorded(*spans):
    return pd.DataFrame(spans, columns=["agent", "phase", "start_ms", "end_ms"])


def test_the_critical_path_is_the_longest_way_through_the_graph(pipeline):
    def longest(timeline):
        return critical_path_ms(timeline, pipeline.after, pipeline.watermarks)

    fan_out = recorded(
        ("prefix", "context", 0, 2),
        ("prefix", "prefill", 2, 12),  # to 64
        ("early", "branch", 12, 15),
        ("early", "generate", 15, 20),
        ("prefix", "prefill", 20, 50),  # to 256
        ("whole", "branch", 50, 51),
        ("whole", "generate", 51, 55),
        ("reviewer", "generate", 55, 60),
    )
    assert longest(fan_out) == (2 + 10 + 30) + 5 + 5  # early's 8 are not on it
    slow = recorded(("prefix", "prefill", 0, 10), ("early", "branch", 10, 90), ("prefix", "prefill", 90, 120))
    assert longest(slow) == 10 + 80  # they are now
    naive = recorded(("early", "prefill", 0, 10), ("whole", "prefill", 10, 50), ("reviewer", "prefill", 50, 95))
    assert longest(naive) == 40 + 45


def test_packed_agents_share_the_time_of_their_group():
    """Three decode together for 6 ms, two for 4 more, one for 3 more: nobody is charged all 13."""
    spans = recorded(
        ("a", "generate", 10, 16), ("b", "generate", 10, 20), ("c", "generate", 10, 23), ("c", "branch", 0, 5)
    )
    assert own_ms(spans).tolist() == [2, 2 + 2, 2 + 2 + 3, 5]


def test_waiting_is_the_same_graph_without_watermarks(pipeline):
    waiting = pipeline.waiting()
    assert set(waiting.watermarks.values()) == {256}
    assert waiting.after == pipeline.after
    assert pipeline.watermarks["early"] == 64


def test_arms_take_turns_and_are_compared_with_naive(pipeline):
    rows, timelines = compare_pipeline(pipeline, repeats=2)
    assert rows.groupby(["repeat", "variant"], sort=False).size().index.tolist() == [
        (r, a) for r in (0, 1) for a in VARIANTS
    ]
    assert (rows.groupby(["repeat", "variant"]).size() == 3).all()
    assert set(timelines.columns) == {"agent", "phase", "start_ms", "end_ms", "bytes", "repeat", "variant"}
    by_variant = rows[rows.repeat == 1].set_index(["variant", "agent"])
    assert by_variant.loc["shared"].same_tokens.all()
    assert by_variant.loc["batched, waiting"].same_tokens.isna().all()  # who waits reads more than naive's agent did
    assert by_variant.loc["batched"].n_prefix.tolist() == [64, 256, 256]
    assert by_variant.loc["batched, waiting"].n_prefix.tolist() == [256] * 3
    share = rows.groupby("variant").prefill_before_first.max()
    assert share["naive"] == 0
    assert 0 < share["batched"] < 1
    assert share["batched, waiting"] == pytest.approx(1)
    assert (rows.critical_path_ms <= rows.end_to_end_ms).all()

    table = pipeline_table(rows)
    assert table.index.tolist() == list(VARIANTS)
    assert table.speedup["naive"] == 1
    assert table.same_tokens["shared"] == 1
    assert table.answer_tokens["shared"] == rows[(rows.variant == "shared") & (rows.repeat == 0)].answer_tokens.sum()
    assert (table.over_critical >= 0).all()
    with pytest.raises(lab.SwarmKVError, match="nothing was measured"):
        pipeline_table(pd.DataFrame())


def test_an_interrupt_keeps_whole_rounds(pipeline, monkeypatch):
    run, calls = lab.Pipeline.run, []

    def interrupted(self, *args, **kwargs):
        calls.append(args)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return run(self, *args, **kwargs)

    monkeypatch.setattr(lab.Pipeline, "run", interrupted)
    rows, _ = compare_pipeline(pipeline, ["naive", "shared"], repeats=5)
    assert rows.repeat.unique().tolist() == [0]
    with pytest.raises(KeyboardInterrupt):
        compare_pipeline(pipeline, ["naive"], repeats=5)


def test_an_agent_that_fails_is_not_a_measurement(pipeline):
    longer = lab.Pipeline(pipeline.model, pipeline.tokens, [lab.Agent("a", [1]), lab.Agent("b", [2] * 4000)])
    with pytest.raises(lab.ContextBudgetError):
        compare_pipeline(longer, ["shared"])


def test_first_answers_are_compared_with_waiting_and_naive_stands_beside(pipeline):
    rows, _ = compare_pipeline(pipeline)
    figure = studies.first_answers(rows, "a caption")
    read = rows[rows.prefill_before_first > 0].groupby("variant").prefill_before_first.median()
    first = min(read["shared"], read["batched"])
    assert f"at {first:.0%} of the prefill, without watermarks at {read['batched, waiting']:.0%}" in figure.get_label()
    fan_outs, naive = figure.axes
    drawn = [[line.get_markerfacecolor() for line in ax.lines] for ax in (fan_outs, naive)]
    assert [len(markers) for markers in drawn] == [3, 1]
    assert drawn[0][-1] == "none"  # waiting is hollow
    assert [label.get_text() for label in fan_outs.get_yticklabels()] == ["early", "whole", "reviewer"]
    figure.draw_without_rendering()


def test_the_timeline_enlarges_what_agents_do_at_their_watermarks():
    waiting = recorded(
        ("prefix", "prefill", 0, 9000), ("a", "generate", 9000, 9050), ("b", "generate", 9000, 9100)
    )  # fmt: skip
    early = recorded(
        ("prefix", "prefill", 0, 3000),
        ("a", "branch", 3000, 3010),
        ("a", "generate", 3010, 3050),
        ("prefix", "prefill", 3050, 9000),
        ("b", "generate", 9000, 9200),
    )
    both = {"batched, waiting": waiting, "batched": early}
    figure = studies.pipeline_timeline(both, {"a": 100, "b": 300})
    assert figure.get_label() == "batched: the first answer begins after 3.0 s; without watermarks after 9.0 s"
    *_, first, second = figure.axes
    for ax, n_tokens, agent, longest_ms in ((first, 100, "a", 50), (second, 300, "b", 200)):
        assert str(n_tokens) in ax.get_title(loc="left")
        assert [label.get_text() for label in ax.get_yticklabels()] == [agent]
        assert longest_ms <= ax.get_xlim()[1] <= 1.1 * longest_ms
    naive = recorded(("a", "prefill", 0, 3000), ("a", "generate", 3000, 3050))
    against_naive = studies.pipeline_timeline({"naive": naive, "batched": early}, {"a": 100, "b": 300})
    assert "with naive after 3.0 s" in against_naive.get_label()


def test_answers_that_waited_stand_beside_those_that_did_not(pipeline):
    rows, _ = compare_pipeline(pipeline, ["batched", "batched, waiting"])
    table = early_and_late(rows)
    assert table.agent.tolist() == ["early"]  # the others read the whole document either way
    assert table[["reads", "reads, waiting"]].iloc[0].tolist() == [64, 256]
    with pytest.raises(lab.SwarmKVError, match="with and without watermarks"):
        early_and_late(rows[rows.variant == "batched"])


def test_what_if_another_agent_had_said_something_else(twin, document):
    agents = [
        Agent("a", document[:4], max_tokens=3),
        Agent("b", document[4:6], max_tokens=3),
        Agent("c", document[6:9], after=["a"], max_tokens=3),
        Agent("d", document[9:11], after=["b", "c"], max_tokens=20),
    ]
    frame = what_if(Pipeline(twin, document, agents), {"a": document[20:30]}).set_index("agent")
    same = frame.answer == frame["if replaced"]
    assert same["b"]
    assert not same[["a", "c", "d"]].any()
