"""Pipelines in studies: the dossier's, and pipelines measured in turns, with watermarks and waiting."""

import pandas as pd
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_studies.common.summary import pipeline_table
from swarmkv_studies.pipeline.bench import VARIANTS, compare_pipeline


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


def test_the_timeline_says_when_who_answered_first():
    def recorded(*spans):
        return pd.DataFrame(spans, columns=["agent", "phase", "start_ms", "end_ms"])

    early = recorded(
        ("prefix", "prefill", 0, 3000), ("a", "generate", 3010, 3050), ("prefix", "prefill", 3050, 9000),
        ("b", "generate", 9000, 9200),
    )  # fmt: skip
    waiting = recorded(("prefix", "prefill", 0, 9000), ("a", "generate", 9000, 9050), ("b", "generate", 9000, 9100))
    figure = studies.pipeline_timeline({"batched, waiting": waiting, "batched": early}, {"a": 100, "b": 300})
    says = "First answer at 3.0 s, end 9.2; without watermarks 9.0 and 9.1 s (one round)"
    assert figure.get_label() == says


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


def test_a_shorter_document_keeps_the_watermarks_share(speaker):
    whole, half = (studies.load_pipeline("dossier", speaker, n_tokens=n) for n in (7000, 3500))
    assert (len(whole.tokens), len(half.tokens)) == (7000, 3500)
    assert (whole.watermarks["security"], half.watermarks["security"]) == (1840, 920)
    assert half.watermarks["cost"] == 3500
    assert half.after["reviewer"] == ("security", "licence", "cost", "reliability")
