"""A run: what it says while it goes on, what an error leaves behind, and one meaning for each of its numbers."""

import json
from contextlib import suppress

import numpy as np
import pytest

import swarmkv_lab as lab
from swarmkv_lab.fanout.recorder import PREFIX
from swarmkv_lab.fanout.strategies import Strategy
from swarmkv_lab.files import as_json


def spans_ms(run, agent, phase):
    spans = run.timeline[(run.timeline.agent == agent) & (run.timeline.phase == phase)]
    return (spans.end_ms - spans.start_ms).tolist()


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
def test_a_callback_may_read_everything_and_freezes_nothing(twin, document, question, strategy):
    seen = []

    def callback(run):
        seen.append((len(run.timeline), run.metrics, run.agents, dict(run.answers), run.errors))

    run = lab.fan_out(twin, document, [question, question[:3]], strategy, max_tokens=4, callback=callback)
    assert len(run.timeline) >= seen[-1][0] > seen[0][0]
    assert run.agents.answer_tokens.tolist() == [4, 4]
    assert seen[0][2].answer_tokens.tolist() == [0, 0]
    assert seen[0][2].ttft_ms.isna().all()  # no first token yet: no number
    assert run.metrics["end_to_end_ms"] == run.timeline.end_ms.max() > seen[-1][1]["end_to_end_ms"]
    assert run.answers == {branch.name: twin.detokenize(branch.tokens) for branch in run.branches}
    undisturbed = lab.fan_out(twin, document, [question, question[:3]], strategy, max_tokens=4)
    assert run.compare(undisturbed).same_tokens.all()


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
@pytest.mark.parametrize("phase", ["prefill", "branch", "generate"])
def test_a_span_ends_with_the_error_that_leaves_it(twin, document, question, strategy, phase):
    runs = []

    def callback(run):
        runs.append(run)
        if run.timeline.phase.iloc[-1] == phase:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        lab.fan_out(twin, document, [question, question], strategy, max_tokens=4, callback=callback)
    run = runs[-1]
    left = run.timeline
    assert left.phase.iloc[-1] == phase
    assert left.equals(run.timeline)  # also a moment later


def graph(max_tokens=4):
    return [
        lab.Agent("early", [1, 2, 3], prefix_tokens=64, max_tokens=max_tokens),
        lab.Agent("whole", [6, 7, 8], max_tokens=max_tokens),
    ]


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
def test_who_failed_counts_in_no_mean(twin, document, strategy):
    def on_token(name, token):
        if name == "early":
            raise ValueError("enough")

    run = lab.Pipeline(twin, document, graph()).run(strategy, on_token=on_token)
    times = ["activation_ms", "branch_ms", "sample_ms", "generate_ms", "ttft_ms"]
    agents = run.agents.set_index("agent")
    assert agents.loc["early", times].isna().all()
    assert agents.loc["whole", times].notna().all()
    for name in times:
        assert run.metrics[name] == agents[name]["whole"]
    assert run.metrics["first_ttft_ms"] == run.metrics["last_ttft_ms"] == agents.ttft_ms["whole"]
    assert run.metrics["last_turn_ttft_ms"] == pytest.approx(agents.loc["whole", times[:3]].sum())
    whole = lab.Pipeline(twin, document, graph()).run(strategy)
    for this, names in ((run, ["whole"]), (whole, ["early", "whole"])):  # a mean where each agent has its own prefill
        lanes = [sum(spans_ms(this, name, "prefill")) for name in (names if strategy == "naive" else [PREFIX])]
        assert this.metrics["prefill_ms"] == pytest.approx(np.mean(lanes))


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
def test_ttft_counts_from_the_call(twin, document, question, strategy):
    run = lab.fan_out(twin, document, [question] * 3, strategy, max_tokens=3)
    ttft, metrics = run.agents.ttft_ms, run.metrics
    assert (metrics["first_ttft_ms"], metrics["ttft_ms"], metrics["last_ttft_ms"]) == tuple(sorted(ttft))
    spans = run.timeline
    first = spans[spans.phase == "generate"].start_ms.min()
    assert metrics["first_ttft_ms"] == first >= spans[spans.phase == "prefill"].end_ms.min()  # whoever does it
    own = run.agents[["activation_ms", "branch_ms", "sample_ms"]].sum(axis=1)
    assert (ttft >= own - 1e-6).all()


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
def test_tokens_are_counted_as_asked_for_and_as_computed(twin, document, question, strategy):
    run = lab.fan_out(twin, document, [question, question[:3]], strategy, max_tokens=2)
    asked = len(question) + 3
    assert run.metrics["prompt_tokens"] == 2 * len(document) + asked
    assert run.metrics["computed_tokens"] == (2 if strategy == "naive" else 1) * len(document) + asked
    if strategy != "naive":
        over = lab.fan_out(twin, lab.prefill(twin, document), [question, question[:3]], strategy, max_tokens=2)
        assert over.metrics["computed_tokens"] == asked
        assert (over.metrics["prefill_ms"], over.compare(run).max_abs_logit_diff.max()) == (0, 0)


def test_a_packed_agents_span_ends_with_its_own_answer(twin, document):
    agents = [lab.Agent("short", [1], max_tokens=2), lab.Agent("long", [2], max_tokens=30)]
    decodes = []
    run = lab.Pipeline(twin, document, agents).run("batched", callback=lambda run: decodes.append(run.now()))
    ends = run.timeline[run.timeline.phase == "generate"].set_index("agent").end_ms
    _prefill, _prompts, second, third, *_ = decodes  # when each begins
    assert second < ends["short"] <= third
    assert run.timeline.end_ms.max() == run.timeline[run.timeline.agent == "long"].end_ms.max()


def test_the_last_snapshot_is_restored_once_for_each_time_that_agents_took_the_context(twin, document):
    """Not where nobody disturbed it: swarmkv's agents have contexts of their own, so that its prefill just goes on."""

    def restored(*agents, strategy="pooled"):
        spans = lab.Pipeline(twin, document, agents).run(strategy).timeline
        return spans.bytes[(spans.agent == PREFIX) & (spans.phase == "restore")].tolist()

    one, two = (lab.Agent(name, [1], prefix_tokens=n, max_tokens=1) for name, n in (("one", 64), ("two", 128)))
    last, late = lab.Agent("last", [1], max_tokens=1), lab.Agent("late", [1], ["last"], 128, max_tokens=1)
    size = twin.geometry.snapshot_bytes
    assert restored(one, two, last) == [size(64), size(128)]
    assert restored(one, last, late) == [size(64)]  # nobody took it at 128
    assert restored(one, two, last, strategy="swarmkv") == restored(last, late) == []


def test_a_snapshot_that_is_there_needs_no_context_to_prefill_in(twin, document, question):
    snapshot = lab.prefill(twin, document)
    run = lab.fan_out(twin, snapshot, [question, question], "swarmkv", max_tokens=2)
    assert run.timeline.phase.value_counts()["context"] == 2
    assert spans_ms(run, PREFIX, "context") == []
    assert run.metrics["kv_bytes"] == twin.geometry.cache_bytes(300 + 9 + 2) + 2 * snapshot.nbytes


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
def test_an_agent_may_have_any_name_but_that_of_what_is_done_for_all(twin, document, question, strategy):
    names = ["", "a\nb", "naive"]
    run = lab.fan_out(twin, document, dict.fromkeys(names, question), strategy, max_tokens=2)
    assert run.agents.agent.tolist() == names
    assert run.agents.ttft_ms.notna().all()
    with pytest.raises(lab.SwarmKVError, match="prefix"):
        lab.fan_out(twin, document, {"prefix": question}, strategy)


def test_json_has_no_numbers_that_json_does_not_know():
    assert json.loads(as_json({"a": [float("nan"), np.float32("inf"), np.int64(3)], "b": (np.bool_(True), None)})) == {
        "a": [None, None, 3], "b": [True, None],
    }  # fmt: skip


def test_a_run_outlives_its_model(twin, document, question, monkeypatch):
    with lab.load_model(twin.path) as model:
        runs = [lab.fan_out(model, document, [question], max_tokens=3), lab.Pipeline(model, document, graph()).run()]
    monkeypatch.setattr(lab.Model, "detokenize", lambda *_: 1 / 0)  # a closed model has no vocabulary any more
    for run in runs:
        assert run.agents.answer.tolist() == list(run.answers.values())
        assert all(run.answers.values())


def test_a_strategy_of_ones_own(twin, document, question):
    """What a peer is: a name and a function that answers a run's agents."""
    mine = Strategy("mine", lab.STRATEGIES["shared"].answer)
    run = lab.fan_out(twin, document, [question], mine, max_tokens=3)
    assert run.strategy == "mine"
    assert run.compare(lab.fan_out(twin, document, [question], "naive", max_tokens=3)).same_tokens.all()
