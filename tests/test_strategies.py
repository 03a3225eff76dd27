"""What the strategies do: phases, bytes, ends of answers, tables. test_architectures proves that they are exact."""

import numpy as np
import pytest

import swarmkv_lab as lab
from swarmkv_lab.fanout.recorder import PREFIX


@pytest.fixture
def agents(rng):
    return {f"a{n}": rng.integers(0, 256, n, dtype=np.int32) for n in (1, 5, 12, 40)}


def test_compare_notices_a_difference(twin, document, agents):
    naive = lab.fan_out(twin, document, agents, "naive", max_tokens=4)
    other = document.copy()
    other[0] = (other[0] + 1) % 256
    exactness = lab.fan_out(twin, other, agents, "naive", max_tokens=4).compare(naive)
    assert (exactness.max_abs_logit_diff > 0).all()


@pytest.mark.parametrize(("n_document", "n_question", "n_agents", "n_batch"), [
    (1, 1, 2, 512), (1, 30, 2, 512), (300, 1, 2, 512), (300, 5, 32, 512), (300, 40, 4, 8),
])  # fmt: skip
def test_few_and_many_tokens_and_agents(twin, document, n_document, n_question, n_agents, n_batch):
    agents = [document[i : i + n_question] for i in range(n_agents)]
    how = {"max_tokens": 3, "n_batch": n_batch}
    naive = lab.fan_out(twin, document[:n_document], agents, "naive", **how)
    for strategy in lab.STRATEGIES:
        run = lab.fan_out(twin, document[:n_document], agents, strategy, **how)
        assert len(run.agents) == n_agents
        assert run.compare(naive).same_tokens.all(), strategy


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
def test_an_answer_ends_before_the_token_that_ends_the_turn(twin, document, agents, strategy, monkeypatch):
    whole = lab.fan_out(twin, document, agents, strategy, max_tokens=6).branches
    end = whole[0].tokens[2]
    monkeypatch.setattr(lab.Model, "is_eog", lambda _self, token: token == end)
    for branch, before in zip(lab.fan_out(twin, document, agents, strategy, max_tokens=6).branches, whole, strict=True):
        ends = before.tokens.index(end) if end in before.tokens else 6
        assert branch.tokens == before.tokens[:ends]
    with twin.context(512) as ctx:
        ctx.decode(document)
        ctx.decode(agents["a1"])
        assert list(ctx.stream(6)) == whole[0].tokens[: whole[0].tokens.index(end)]


def test_no_answer_wanted(twin, document, agents):
    for strategy in lab.STRATEGIES:
        run = lab.fan_out(twin, document, agents, strategy, max_tokens=0)
        assert (run.agents.answer_tokens == 0).all()
        assert run.agents.ttft_ms.notna().all()


def test_each_strategy_does_what_its_name_says(twin, document, agents):
    runs = {name: lab.fan_out(twin, document, agents, name, max_tokens=2) for name in lab.STRATEGIES}
    phases = {name: run.timeline.phase.value_counts() for name, run in runs.items()}
    nbytes = twin.geometry.snapshot_bytes(len(document))
    assert phases["naive"]["prefill"] == 4
    assert all(phases[name]["prefill"] == 1 for name in lab.STRATEGIES if name != "naive")
    assert (phases["swarmkv"]["copy"], phases["swarmkv"]["restore"], phases["swarmkv"]["context"]) == (4, 4, 5)
    assert (phases["pooled"]["restore"], phases["pooled"]["context"]) == (4, 1)
    assert (phases["shared"]["share"], phases["shared"]["context"]) == (4, 1)
    assert [runs[name].metrics["copied_bytes"] for name in lab.STRATEGIES] == [0, 9 * nbytes, 5 * nbytes, 0, 0]


def test_kv_bytes_is_what_is_held_at_the_peak(twin, document, agents):
    context = twin.geometry.cache_bytes(300 + 40 + 2)
    snapshot = twin.geometry.snapshot_bytes(300)
    held = {
        name: lab.fan_out(twin, document, agents, name, max_tokens=2).metrics["kv_bytes"] for name in lab.STRATEGIES
    }
    assert held == {
        "naive": context,
        "swarmkv": context + 2 * snapshot,
        "pooled": context + snapshot,
        "shared": context,
        "batched": twin.geometry.cache_bytes(300 + 1 + 5 + 12 + 40 + 4 * 2),
    }


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
def test_the_tables_follow_from_the_timeline(twin, document, agents, strategy):
    run = lab.fan_out(twin, document, agents, strategy, max_tokens=3)
    assert list(run.timeline) == ["agent", "phase", "start_ms", "end_ms", "bytes"]
    for _, lane in run.timeline.groupby("agent"):  # one thing after the other
        assert (np.diff(lane[["start_ms", "end_ms"]].to_numpy().ravel()) >= 0).all()
    assert list(run.agents.agent) == list(agents)
    assert set(run.timeline.agent) - {PREFIX} == set(agents)
    ms = (run.timeline.end_ms - run.timeline.start_ms).groupby([run.timeline.phase, run.timeline.agent]).sum()
    np.testing.assert_allclose(run.agents.sample_ms, ms["sample"][run.agents.agent])
    assert run.metrics["end_to_end_ms"] == run.timeline.end_ms.max()
    if strategy == "naive":
        activation = (ms["context"] + ms["prefill"])[run.agents.agent]
        np.testing.assert_allclose(run.agents.activation_ms, activation)
