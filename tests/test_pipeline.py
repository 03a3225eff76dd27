"""Pipelines: graphs of agents, watermarks and failures; every strategy gives naive's answers."""

import numpy as np
import pytest
from conftest import load_shape
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import swarmkv_lab as lab
from swarmkv_lab.fanout.pipeline import Agent, Pipeline
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.sampling import decode_together

EXACT = ["swarmkv", "pooled", "shared"]


@pytest.fixture(scope="module")
def text():
    return np.random.default_rng(3).integers(0, 256, 256, dtype=np.int32)


@pytest.fixture
def pipeline(twin, text):
    """Two on watermarks, one on the whole, a reviewer of all three."""
    return Pipeline(twin, text, [
        Agent("early", [1, 2, 3], prefix_tokens=64, max_tokens=4),
        Agent("middle", [4, 5], prefix_tokens=128, max_tokens=3),
        Agent("whole", [6, 7, 8], max_tokens=5),
        Agent("reviewer", [9], after=["early", "middle", "whole"], max_tokens=6),
    ])  # fmt: skip


def answers(run):
    return {agent.name: agent.tokens for agent in run.branches}


def failing(*names):
    def on_token(name, token):
        if name in names:
            raise ValueError("enough")

    return on_token


# -- answers


def test_a_prompt_is_the_answers_that_it_comes_after_and_its_own(pipeline):
    """test_architectures proves that every strategy gives naive's."""
    naive = pipeline.run("naive")
    done = answers(naive)
    assert [len(tokens) for tokens in done.values()] == [4, 3, 5, 6]
    assert naive.branches[3].prompt.tolist() == [*done["early"], *done["middle"], *done["whole"], 9]


def test_a_seed_gives_the_same_answer_in_every_strategy_whose_batches_are_alike(twin, text):
    varied = [lab.Sampling(temperature=2.0, seed=seed) for seed in (1, 2)]
    agents = [Agent(f"a{how.seed}", [1, 2], max_tokens=8, sampling=how) for how in varied]
    first, *others = (answers(Pipeline(twin, text, agents).run(name)) for name in ("naive", *EXACT))
    assert all(other == first for other in others)
    assert first["a1"] != first["a2"]


# -- what is done when


@pytest.mark.parametrize("strategy", [name for name in lab.STRATEGIES if name != "naive"])
def test_an_agent_on_a_watermark_begins_before_the_prefill_ends(pipeline, strategy):
    spans = pipeline.run(strategy).timeline
    to_64, to_128, to_the_end = spans[(spans.phase == "prefill") & (spans.agent == "prefix")].itertuples()
    first = spans[spans.phase == "generate"].groupby("agent").start_ms.min()
    assert to_64.end_ms < first["early"] < to_128.start_ms
    assert to_128.end_ms < first["middle"] < to_the_end.start_ms
    assert to_the_end.end_ms < first["whole"] < first["reviewer"]


def test_no_token_is_prefilled_that_nobody_reads(twin, text):
    decoded = []
    agents = [Agent("a", [1], prefix_tokens=100, max_tokens=1)]
    assert answers(Pipeline(twin, text, agents).run("shared", callback=decoded.append))["a"]
    assert len(decoded) == 2  # 100 tokens and a question


# -- what cannot be run


@pytest.mark.parametrize(("agents", "said"), [
    ([], None),
    ([Agent("a", [1]), Agent("b", [1]), Agent("a", [2])], None),
    ([Agent("a", [1], after=["c"])], None),
    ([Agent("a", [1], after=["b"]), Agent("b", [1], after=["a"])], None),
    ([Agent("a", [1], prefix_tokens=257)], "257.* 256"),
    *(([agent], said) for agent, said in (
        (Agent(5, [1]), "5"), (Agent("a", [1], prefix_tokens=0), "0"), (Agent("a", [1], max_tokens=-1), "-1"),
        (Agent("a", [999]), "999"), (Agent("a", []), None), (Agent("a", [1], after=["a"]), None),
    )),
])  # fmt: skip
def test_what_cannot_be_run_is_refused_before_any_decode(twin, text, agents, said):
    with pytest.raises(lab.SwarmKVError, match=said):
        Pipeline(twin, text, agents)
    with pytest.raises(lab.SwarmKVError):
        Agent("b", [1], after="a")


def test_a_budget_that_does_not_hold_the_longest_prompt_is_refused(pipeline):
    # the reviewer: 256 + 4 + 3 + 5 answer tokens + 1 + 6
    with pytest.raises(lab.ContextBudgetError, match=r"275.*274"):
        pipeline.run("shared", n_ctx=274)
    assert pipeline.run("shared", n_ctx=275).errors == {}


# -- failures


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
def test_a_failure_fails_those_after_it_and_nobody_else(pipeline, strategy):
    told = {}
    whole = answers(pipeline.run(strategy, on_token=lambda name, token: told.setdefault(name, []).append(token)))
    assert told == whole
    run = pipeline.run(strategy, on_token=failing("middle"))
    assert set(run.errors) == {"middle", "reviewer"}
    assert "ValueError('enough')" in str(run.errors["middle"])
    assert str(run.errors["middle"]) in str(run.errors["reviewer"])
    assert [answers(run)[name] for name in ("early", "whole")] == [whole[name] for name in ("early", "whole")]


@st.composite
def graphs(draw):
    names = [f"a{i}" for i in range(draw(st.integers(1, 8)))]
    agents = []
    for i, name in enumerate(names):
        after = draw(st.lists(st.sampled_from(names[:i]), unique=True, max_size=3)) if i else []
        watermark = draw(st.none() | st.sampled_from([64, 128, 192]))
        agents.append(Agent(name, [i + 1], after, watermark, draw(st.integers(0, 3))))
    return draw(st.permutations(agents)), draw(st.sets(st.sampled_from(names), max_size=2))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graphs())
def test_any_graph_ends_with_naives_answers_and_the_right_errors(twin, text, drawn):
    agents, broken = drawn
    by_name = {agent.name: agent for agent in agents}

    def fails(name):
        return (name in broken and by_name[name].max_tokens > 0) or any(fails(other) for other in by_name[name].after)

    failed = set(filter(fails, by_name))
    how = {"on_token": failing(*broken), "n_batch": 64}
    naive, shared, batched = (Pipeline(twin, text, agents).run(name, **how) for name in ("naive", "shared", "batched"))
    assert set(naive.errors) == set(shared.errors) == set(batched.errors) == failed
    assert all(answers(shared)[name] == answers(naive)[name] for name in by_name if name not in failed)


@pytest.fixture
def trio(twin, text):
    """Three that decode together, and one after two of them."""
    last = Agent("last", [9], after=["a1", "a3"], max_tokens=3)
    return Pipeline(twin, text, [*(Agent(f"a{i}", [i, i + 1], max_tokens=4) for i in (1, 2, 3)), last])


def break_decodes(monkeypatch, breaks):
    """Each llama_decode for which ``breaks(sequence ids of its tokens, number of tokens)`` fails."""
    decode_chunk = Context._decode_chunk

    def decode(self, token, pos, seq, ends):
        if breaks(set(seq.tolist()), len(seq)):
            raise lab.DecodeError("llama_decode returned -3, it failed")
        decode_chunk(self, token, pos, seq, ends)

    monkeypatch.setattr(Context, "_decode_chunk", decode)


def test_what_fails_together_is_decoded_one_by_one_and_warned_of_unless_a_failure_ends_the_run(trio, monkeypatch):
    alone = answers(trio.run("shared"))
    break_decodes(monkeypatch, lambda seqs, n: len(seqs) > 1)
    with pytest.warns(UserWarning, match=r"-3.* 3 "):
        run = trio.run("batched")
    assert (run.errors, answers(run)) == ({}, alone)
    with pytest.raises(lab.DecodeError):
        lab.fan_out(trio.model, trio.tokens, [[1], [2]], "batched")


@pytest.mark.parametrize("at", ["its prompt", "its answer"])
def test_a_decode_that_fails_is_one_agents_failure(trio, monkeypatch, at):
    alone = answers(trio.run("shared"))
    prompts = 6  # tokens of the three together; 2 alone
    break_decodes(monkeypatch, lambda seqs, n: 2 in seqs and (n in (2, prompts)) == (at == "its prompt"))
    with pytest.warns(UserWarning, match="-3"):
        run = trio.run("batched")
    assert list(run.errors) == ["a2"]
    assert "-3" in str(run.errors["a2"])
    assert {name: answers(run)[name] for name in ("a1", "a3")} == {name: alone[name] for name in ("a1", "a3")}


def test_a_draw_that_fails_is_one_agents_failure(trio, monkeypatch):
    pop_logits = Context.pop_logits
    monkeypatch.setattr(Context, "pop_logits", lambda ctx, seq: pop_logits(ctx, seq) * (np.nan if seq == 2 else 1))
    run = trio.run("batched")
    assert list(run.errors) == ["a2"]
    assert "nan" in str(run.errors["a2"])
    assert [len(answers(run)[name]) for name in ("a1", "a3", "last")] == [4, 4, 3]


# -- sliding windows


def test_windows_slide_on_between_watermarks(tmp_path, rng):
    """A full cache of windowed layers, shared, has to have room for the agents, and for the document's rest."""
    tokens = rng.integers(0, 256, 1536, dtype=np.int32)
    agents = [
        *(Agent(f"at {n}", [n % 251] * 40, prefix_tokens=n, max_tokens=8) for n in (512, 1024, 1536)),
        Agent("with the last", [7] * 300, max_tokens=8),
        Agent("reviewer", [9], after=["at 512", "at 1536"], max_tokens=8),
    ]
    with load_shape("sliding window", tmp_path) as windowed:
        pipeline = Pipeline(windowed, tokens, agents)
        naive = pipeline.run("naive")
        for strategy in EXACT:
            run = pipeline.run(strategy)
            assert run.errors == {}
            assert (run.compare(naive).max_abs_logit_diff == 0).all(), strategy
            assert run.compare(naive).same_tokens.all(), strategy
        assert pipeline.run("batched").errors == {}


def test_agents_come_back_to_what_windows_have_passed(tmp_path, text):
    late = [Agent("first", [1], max_tokens=2)]
    late += [Agent(f"at {n}", [2] * 9, ["first"], prefix_tokens=n, max_tokens=4) for n in (64, 200)]
    with load_shape("sliding window", tmp_path) as windowed:
        pipeline = Pipeline(windowed, text, late)
        for how in ({}, {"swa_full": True}):
            naive = pipeline.run("naive", **how)
            for strategy in lab.STRATEGIES:
                run = pipeline.run(strategy, **how)
                assert run.errors == {}
                assert (run.compare(naive).kl < 1e-3).all(), strategy


def test_a_sequence_that_lost_its_window_is_not_gone_on_from(tmp_path, text, monkeypatch):
    failed = {}
    with load_shape("sliding window", tmp_path) as windowed, windowed.context(2048, n_seq_max=2, n_batch=64) as ctx:
        ctx.decode(np.tile(text, 3), 0)
        ctx.decode(text, 1)
        # when the last chunk fails, 0 has overwritten the window that it would go back to, and 1 has decoded nothing
        break_decodes(monkeypatch, lambda seqs, n: seqs == {0, 1})
        with pytest.warns(UserWarning, match="1 "):
            done = decode_together(ctx, {0: np.tile(text, 3)[:750], 1: text[:4]}, failed.__setitem__)
        assert (done, list(failed)) == ([1], [0])
        assert "-3" in str(failed[0])
        assert (ctx.n_past(0), ctx.n_past(1)) == (0, 260)
