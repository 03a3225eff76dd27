"""Pipelines in studies: read from TOML files, measured in turns, with watermarks and waiting."""

import numpy as np
import pandas as pd
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_studies.common.summary import pipeline_table
from swarmkv_studies.pipeline.bench import VARIANTS, compare_pipeline, what_if


@pytest.fixture
def pipeline(twin, document):
    return lab.Pipeline(twin, document[:256], [
        lab.Agent("early", [1, 2, 3], prefix_tokens=64, max_tokens=4),
        lab.Agent("whole", [6, 7, 8], max_tokens=5),
        lab.Agent("reviewer", [9], after=["early", "whole"], max_tokens=6),
    ])  # fmt: skip


def test_arms_take_turns_and_are_compared_with_naive(pipeline):
    rows, timelines = compare_pipeline(pipeline, repeats=2)
    turns = rows[["repeat", "variant"]].drop_duplicates().itertuples(index=False)
    assert [tuple(turn) for turn in turns] == [(i, variant) for i in (0, 1) for variant in VARIANTS]
    assert set(timelines.columns) == {"agent", "phase", "start_ms", "end_ms", "bytes", "repeat", "variant"}
    by_variant = rows[rows.repeat == 1].set_index(["variant", "agent"])
    assert by_variant.loc["shared"].same_tokens.all()
    assert by_variant.loc["batched, waiting"].same_tokens.isna().all()  # who waits reads more than naive's agent did
    assert by_variant.loc["batched"].n_prefix.tolist() == [64, 256, 256]
    assert by_variant.loc["batched, waiting"].n_prefix.tolist() == [256] * 3
    share = rows.groupby("variant").prefill_before_first.max()
    assert share["naive"] == 0 < share["batched"] < 1
    assert share["batched, waiting"] == pytest.approx(1)
    table = pipeline_table(rows)
    assert table.index.tolist() == list(VARIANTS)
    assert table.same_tokens["shared"] == 1


def test_an_interrupt_keeps_whole_rounds(pipeline, monkeypatch):
    run, left = lab.Pipeline.run, iter("123")

    def interrupted(self, *args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return run(self, *args)

    monkeypatch.setattr(lab.Pipeline, "run", interrupted)
    rows, _ = compare_pipeline(pipeline, ["naive", "shared"], repeats=5)
    assert rows.repeat.unique().tolist() == [0]
    with pytest.raises(KeyboardInterrupt):
        compare_pipeline(pipeline, ["naive"])


def test_what_if_another_agent_had_said_something_else(twin, document):
    graph = {"a": (), "b": (), "c": ["a"], "d": ["b", "c"]}
    agents = [
        lab.Agent(name, document[4 * i :][:4], after, max_tokens=9) for i, (name, after) in enumerate(graph.items())
    ]
    frame = what_if(lab.Pipeline(twin, document, agents), {"a": document[20:30]}).set_index("agent")
    same = frame.answer == frame["if replaced"]
    assert same["b"]
    assert not same[["a", "c", "d"]].any()


def test_the_timeline_says_when_who_answered_first():
    def recorded(*spans):
        return pd.DataFrame(spans, columns=["agent", "phase", "start_ms", "end_ms"])

    early = recorded(
        ("prefix", "prefill", 0, 3000), ("a", "generate", 3010, 3050), ("prefix", "prefill", 3050, 9000),
        ("b", "generate", 9000, 9200),
    )  # fmt: skip
    waiting = recorded(("prefix", "prefill", 0, 9000), ("a", "generate", 9000, 9050), ("b", "generate", 9000, 9100))
    figure = studies.pipeline_timeline({"batched, waiting": waiting, "batched": early}, {"a": 100, "b": 300})
    assert "3.0 s; without watermarks after 9.0 s" in figure.get_label()


# -- from a file

SPEC = """
document = "notes.txt"
[agents.early]
prompt = "What is it?"
prefix_tokens = 20
max_tokens = 3
[agents.late]
prompt = "And then?"
after = ["early"]
sampling = { temperature = 0.7, seed = 4 }
"""


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "notes.txt").write_text("The shared cache holds every key and value of the document. " * 8)
    (tmp_path / "spec.toml").write_text(SPEC)
    return tmp_path / "spec.toml"


@pytest.fixture
def speaking(twin, monkeypatch):
    """The twin, as if it could read and be asked in words: a token for each word."""
    for name in ("read", "ask"):
        monkeypatch.setattr(lab.Model, name, lambda model, text: np.arange(len(text.split()), dtype=np.int32) % 256)
    return twin


def test_a_file_says_what_the_classes_say(speaking, spec):
    pipeline = studies.load_pipeline(spec, speaking, n_tokens=44)
    assert len(pipeline.tokens) == 44  # of 88
    assert pipeline.agents == [
        lab.Agent("early", "What is it?", prefix_tokens=10, max_tokens=3),
        lab.Agent("late", "And then?", after=["early"], sampling=lab.Sampling(temperature=0.7, seed=4)),
    ]


@pytest.mark.parametrize(("was", "now", "said"), [
    ("prompt = \"What is it?\"\n", "", "agents.early"),
    ("max_tokens = 3", "max_token = 3", "max_token"),
    ("seed = 4", "sead = 4", "sead"),
    ("{ temperature = 0.7, seed = 4 }", "7", "7"),
    ("[agents.late]", "[agents.early]", "spec.toml"),
    ("after = [\"early\"]", f"after = {'[' * 5000}{']' * 5000}", "spec.toml"),
    ("after = [\"early\"]", "after = [\"nobody\"]", "nobody"),
    ("document = \"notes.txt\"\n", "", "document"),
    ("notes.txt", "nothing.txt", "nothing.txt"),
    ("prefix_tokens = 20", "prefix_tokens = 89", "89.* 88"),
    ("[agents.early]", "[agents]\nearly = 3\n[agents.other]", "3"),
])  # fmt: skip
def test_what_a_file_gets_wrong_is_said(speaking, spec, was, now, said):
    assert was in SPEC
    spec.write_text(SPEC.replace(was, now))
    with pytest.raises(lab.SwarmKVError, match=said):
        studies.load_pipeline(spec, speaking)
