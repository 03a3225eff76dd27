"""Pipelines: graphs of agents, watermarks, failures and forks; every strategy gives naive's answers."""

import threading
import time

import numpy as np
import pytest
from conftest import load_shape, often
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.fanout.pipeline import Agent, Pipeline
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.generation import decode_together
from swarmkv_studies.pipeline import stream

EXACT = ["swarmkv", "pooled", "shared"]


@pytest.fixture(scope="module")
def text():
    return np.random.default_rng(3).integers(0, 256, 256, dtype=np.int32)


def graph():
    """Two on watermarks, one on the whole, a reviewer of all three."""
    return [
        Agent("early", [1, 2, 3], prefix_tokens=64, max_tokens=4),
        Agent("middle", [4, 5], prefix_tokens=128, max_tokens=3),
        Agent("whole", [6, 7, 8], max_tokens=5),
        Agent("reviewer", [9], after=["early", "middle", "whole"], max_tokens=6),
    ]


def answers(run):
    return {agent.name: agent.tokens for agent in run.branches}


def test_every_strategy_gives_naives_answers_bit_by_bit(twin, text):
    pipeline = Pipeline(twin, text, graph())
    naive = pipeline.run("naive", n_batch=64)  # the watermarks are ends of its batches too
    assert [len(tokens) for tokens in answers(naive).values()] == [4, 3, 5, 6]
    for strategy in EXACT:
        run = pipeline.run(strategy, n_batch=64)
        compared = run.compare(naive)
        assert (compared.max_abs_logit_diff == 0).all(), strategy
        assert compared.same_tokens.all(), strategy
        assert run.errors == {}


def test_a_reviewer_reads_the_answers_of_those_before_it(twin, text):
    run = Pipeline(twin, text, graph()).run("shared")
    done = answers(run)
    reviewer = run.branches[3]
    assert reviewer.prompt.tolist() == [*done["early"], *done["middle"], *done["whole"], 9]
    assert run.agents.prompt_tokens.tolist() == [3, 2, 3, 13]


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
def test_answers_that_are_given_are_read_instead(twin, text, strategy):
    pipeline = Pipeline(twin, text, graph())
    done = answers(pipeline.run("shared"))
    early = done.pop("early")
    run = pipeline.run(strategy, given={"middle": done["middle"], "whole": done["whole"]})
    assert list(run.answers) == ["early", "reviewer"]
    assert run.branches[1].prompt.tolist() == [*early, *done["middle"], *done["whole"], 9]
    other = pipeline.run(strategy, given={"early": [7], "middle": done["middle"], "whole": done["whole"]})
    assert other.branches[0].prompt.tolist() == [7, *done["middle"], *done["whole"], 9]
    if strategy in EXACT:
        assert run.branches[1].tokens == done["reviewer"]


@pytest.mark.parametrize(("wrong", "message"), [
    ({"auditor": [1]}, "given has an answer of auditor, and the agents are early, middle"),
    ({"early": [1], "middle": [1], "whole": [1], "reviewer": [1]}, "all agents are given: there is nothing to run"),
    ({"early": [-1]}, "-1"),
    ({"early": "red"}, "has no vocabulary"),
])  # fmt: skip
def test_answers_that_cannot_be_given(twin, text, wrong, message):
    with pytest.raises(lab.SwarmKVError, match=message):
        Pipeline(twin, text, graph()).run("shared", given=wrong)


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
def test_an_agent_on_a_watermark_begins_before_the_prefill_ends(twin, text, strategy):
    run = Pipeline(twin, text, graph()).run(strategy)
    spans = run.timeline
    prefills = spans[(spans.phase == "prefill") & (spans.agent == "prefix")]
    if strategy == "naive":
        assert prefills.empty
        return
    assert len(prefills) == 3  # to 64, to 128, to the end
    first = spans[spans.phase == "generate"].groupby("agent").start_ms.min()
    assert first["early"] < prefills.start_ms.iloc[1]
    assert prefills.end_ms.iloc[1] < first["middle"] < prefills.start_ms.iloc[2]
    assert first["reviewer"] > first["whole"] > prefills.end_ms.iloc[2]


def test_no_token_is_prefilled_that_nobody_reads(twin, text):
    decoded = []
    run = Pipeline(twin, text, [Agent("a", [1], prefix_tokens=100, max_tokens=1)]).run(
        "shared", callback=lambda run: decoded.append(run)
    )
    assert answers(run)["a"]
    assert len(decoded) == 2  # 100 tokens and a question


def test_agents_of_a_late_turn_read_no_further_than_their_watermark(twin, text):
    late = [Agent("first", [1], max_tokens=2), Agent("second", [2], after=["first"], prefix_tokens=64, max_tokens=4)]
    runs = {name: Pipeline(twin, text, late).run(name, n_batch=64) for name in lab.STRATEGIES}
    for name in ("swarmkv", "pooled", "shared", "batched"):  # one agent at a time: batched has naive's shapes too
        assert (runs[name].compare(runs["naive"]).max_abs_logit_diff == 0).all(), name


@pytest.mark.parametrize(
    ("agents", "message"),
    [
        ([], "at least one agent"),
        ([Agent("a", [1]), Agent("b", [1]), Agent("a", [2])], "a: each agent needs a name of its own"),
        ([Agent("a", [1], after=["c"]), Agent("b", [1])], "a comes after c, and the agents are a, b"),
        (
            [Agent("a", [1], after=["b"]), Agent("b", [1], after=["a"])],
            "agents wait for each other: [ab] after [ab] after",
        ),
        ([Agent("a", [1], after=["a"])], "agents wait for each other: a after a"),
        ([Agent("a", [1], prefix_tokens=257)], "a: prefix_tokens=257: it must be a whole number from 1 to 256"),
        ([Agent("a", [1], prefix_tokens=0)], "a: prefix_tokens=0: it must be a whole number from 1 to 256"),
        ([Agent("a", [1], max_tokens=-1)], "a: max_tokens=-1"),
        ([Agent("a", [999])], "token id 999 is outside the vocabulary"),
        ([Agent("a", [])], "non-empty"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_decode(twin, text, agents, message):
    with pytest.raises(lab.SwarmKVError, match=message):
        Pipeline(twin, text, agents)


def test_a_budget_that_does_not_hold_the_longest_prompt_is_refused(twin, text):
    # the reviewer: 256 + 4 + 3 + 5 answer tokens + 1 + 6
    with pytest.raises(lab.ContextBudgetError, match="= 275 tokens do not fit n_ctx=274"):
        Pipeline(twin, text, graph()).run("shared", n_ctx=274)
    assert Pipeline(twin, text, graph()).run("shared", n_ctx=275).errors == {}


def test_an_unknown_strategy(twin, text):
    with pytest.raises(lab.SwarmKVError, match="'fast' is not one of naive, "):
        Pipeline(twin, text, graph()).run("fast")


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
@pytest.mark.parametrize("failing", ["early", "middle", "whole", "reviewer"])
def test_a_failure_fails_those_after_it_and_nobody_else(twin, text, strategy, failing):
    def on_token(name, token):
        if name == failing:
            raise ValueError("enough")

    whole = answers(Pipeline(twin, text, graph()).run(strategy))
    run = Pipeline(twin, text, graph()).run(strategy, on_token=on_token)
    assert set(run.errors) == {failing, "reviewer"}
    assert str(run.errors[failing]) == f"{failing} failed: on_token raised ValueError('enough')"
    if failing != "reviewer":
        assert str(run.errors["reviewer"]) == f"reviewer comes after {failing}, and {run.errors[failing]}"
    for name, tokens in answers(run).items():
        if name not in run.errors:
            assert tokens == whole[name]


def test_every_token_is_told_when_it_comes(twin, text):
    told = {}
    run = Pipeline(twin, text, graph()).run(on_token=lambda name, token: told.setdefault(name, []).append(token))
    assert told == answers(run)


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
@pytest.mark.parametrize("at", [1, 2, 4, 7, 12])
def test_an_interrupt_at_any_decode_ends_the_run_and_frees_its_contexts(twin, text, strategy, at):
    looks = []

    def watch(run):
        looks.append(run)
        if len(looks) == at:
            raise KeyboardInterrupt

    before = [ctx for ctx in twin._contexts if ctx._free.alive]
    with pytest.raises(KeyboardInterrupt):
        Pipeline(twin, text, graph()).run(strategy, callback=watch)
    assert [ctx for ctx in twin._contexts if ctx._free.alive] == before


def test_a_seed_gives_the_same_answer_in_every_strategy_whose_batches_are_alike(twin, text):
    agents = [
        Agent(f"a{seed}", [1, 2], max_tokens=8, sampling=lab.Sampling(temperature=2.0, seed=seed)) for seed in (1, 2)
    ]
    runs = [answers(Pipeline(twin, text, agents).run(name)) for name in ("naive", "swarmkv", "pooled", "shared")]
    assert runs[0] == runs[1] == runs[2] == runs[3]
    assert runs[0]["a1"] != runs[0]["a2"]


def deep_graph():
    """64 agents, five deep, on watermarks of all kinds."""
    rng = np.random.default_rng(5)
    return [
        Agent(
            f"a{i}",
            [i],
            after=[]
            if i < 13
            else [f"a{j}" for j in rng.choice(range(i // 13 * 13 - 13, i // 13 * 13), 2, replace=False)],
            prefix_tokens=int(rng.integers(1, 257)),
            max_tokens=2,
        )
        for i in range(64)
    ]


def test_64_agents_five_deep(twin, text):
    run = Pipeline(twin, text, deep_graph()).run("batched")
    assert run.errors == {}
    assert all(answers(run).values())


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["pooled", "shared", "batched"])
def test_a_failure_at_any_of_64_nodes(twin, text, strategy):
    agents = deep_graph()
    pipeline = Pipeline(twin, text, agents)
    before = len([ctx for ctx in twin._contexts if ctx._free.alive])
    for failing in list(pipeline.after)[:: 64 // often(64)]:

        def on_token(name, token, failing=failing):
            if name == failing:
                raise ValueError("enough")

        expected = {failing}
        for agent in agents:  # those after it, and those after them: agents stand in the order of the graph
            if expected & set(agent.after):
                expected.add(agent.name)
        assert set(pipeline.run(strategy, on_token=on_token).errors) == expected
    assert len([ctx for ctx in twin._contexts if ctx._free.alive]) == before


@st.composite
def pipelines(draw):
    n = draw(st.integers(1, 8))
    names = [f"a{i}" for i in range(n)]
    agents = []
    for i, name in enumerate(names):
        after = draw(st.lists(st.sampled_from(names[:i]), unique=True, max_size=3)) if i else []
        watermark = draw(st.none() | st.sampled_from([64, 128, 192]))
        agents.append(Agent(name, [i + 1], after, watermark, draw(st.integers(0, 3))))
    order = draw(st.permutations(agents))
    return order, draw(st.sets(st.sampled_from(names), max_size=2))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pipelines())
def test_any_graph_ends_with_naives_answers_and_the_right_errors(twin, text, drawn):
    agents, failing = drawn

    def on_token(name, token):
        if name in failing:
            raise RuntimeError(name)

    pipeline = Pipeline(twin, text, agents)
    naive = pipeline.run("naive", on_token=on_token, n_batch=64)
    shared = pipeline.run("shared", on_token=on_token, n_batch=64)
    batched = pipeline.run("batched", on_token=on_token, n_batch=64)
    by_name = {agent.name: agent for agent in agents}

    def fails(name):
        return (name in failing and by_name[name].max_tokens > 0) or any(fails(other) for other in by_name[name].after)

    expected = {name for name in by_name if fails(name)}
    for run in (naive, shared, batched):
        assert set(run.errors) == expected
    for agent, theirs in zip(shared.branches, naive.branches, strict=True):
        if agent.name not in expected:
            assert agent.tokens == theirs.tokens


def test_forks_share_are_leased_and_come_back(twin, text):
    with twin.context(512, n_seq_max=4) as ctx:
        ctx.decode(text)
        whole = ctx.logits()
        with ctx.fork(2) as forks:
            assert forks == [1, 2]
            ctx.decode([5], forks[0])
            with ctx.fork(1, forks[0]) as (fork,):  # a fork of a fork: the document, 5, and its own
                assert (fork, ctx.n_past(fork)) == (3, 257)
                np.testing.assert_array_equal(ctx.logits(fork), ctx.logits(forks[0]))
                with (
                    pytest.raises(lab.SwarmKVError, match="1 forks were asked for, and 0 of 4 sequences are free"),
                    ctx.fork(1),
                ):
                    pass
            ctx.clear(forks[1])  # a lease is a lease, also of an empty sequence
            with ctx.fork(1) as (again,):
                assert again == 3
        assert [ctx.n_past(i) for i in range(4)] == [256, 0, 0, 0]
        np.testing.assert_array_equal(ctx.logits(0), whole)


def test_an_agents_state_is_fanned_out_with_the_same_calls(twin, text):
    """Prefix, question and answer so far are a prefix again."""
    with twin.context(512) as ctx:
        ctx.decode(text)
        ctx.decode([1, 2, 3])
        answer = list(ctx.stream(4))
        ctx.decode(answer[-1:])  # the last token yielded is not yet decoded
        so_far = np.concatenate([text, [1, 2, 3], answer]).astype(np.int32)
        snapshot = lab.KVSnapshot.capture(ctx, so_far)
    forks = lab.fan_out(twin, snapshot, [[7], [8]], "shared", max_tokens=3)
    naive = lab.fan_out(twin, so_far, [[7], [8]], "naive", max_tokens=3)
    assert forks.compare(naive).same_tokens.all()


def test_the_graph_and_the_timeline_are_drawn(twin, text):
    pipeline = Pipeline(twin, text, graph())
    drawn = studies.graph(pipeline.after, pipeline.watermarks)
    assert "4 agents over one document, 2 of which begin" in drawn.get_label()
    words = [shown.get_text() for shown in drawn.axes[0].texts]
    assert "early\nfirst 64 tokens" in words
    assert "reviewer\nthe whole document" in words
    runs = {name: pipeline.run(name).timeline for name in ("naive", "shared")}
    timeline = studies.pipeline_timeline(runs, pipeline.watermarks, "a caption")
    marks = [shown.get_text().strip() for shown in timeline.axes[1].texts]
    assert marks == ["64", "128", "256"]
    timeline.draw_without_rendering()


def test_a_stream_shows_what_the_agents_say(twin, text):
    widget = stream(Pipeline(twin, text, graph()), strategy="shared")
    with pytest.raises(lab.SwarmKVError, match="press Run"):
        widget.data()
    widget.run_button.click()
    assert widget.wait(60)
    assert "finished" in widget.message.value
    assert widget.progress.value == 1
    assert "data:image/png" in widget.picture.value
    for answer in widget.run.answers.values():
        assert answer in widget.answers.value
    assert set(widget.data().agent) >= {"early", "reviewer"}
    assert widget.children.index(widget.answers) < widget.children.index(widget.picture)  # they are what one reads


def test_a_streams_failures_are_said(twin, text, monkeypatch):
    widget = stream(Pipeline(twin, text, graph()))
    monkeypatch.setattr(Pipeline, "_prepare", lambda *_: (_ for _ in ()).throw(lab.SwarmKVError("no prompt")))
    widget.run_button.click()
    assert widget.wait(60)
    assert "role='alert'" in widget.message.value
    assert "early failed: no prompt" in widget.message.value


def trio():
    """Three whose groups decode together, and one after them."""
    return [
        *(Agent(f"a{i}", [i, i + 1], max_tokens=4) for i in (1, 2, 3)),
        Agent("last", [9], after=["a1", "a3"], max_tokens=3),
    ]


def break_decodes(monkeypatch, breaks):
    """Each llama_decode for which ``breaks(sequence ids of its tokens, number of tokens)`` fails."""
    decode_chunk = Context._decode_chunk

    def decode(self, token, pos, seq, ends):
        if breaks(set(seq.tolist()), len(seq)):
            raise lab.DecodeError("llama_decode returned -3, it failed")
        decode_chunk(self, token, pos, seq, ends)

    monkeypatch.setattr(Context, "_decode_chunk", decode)


def test_what_fails_together_is_decoded_one_by_one_and_warned_of(twin, text, monkeypatch):
    alone = answers(Pipeline(twin, text, trio()).run("shared"))
    break_decodes(monkeypatch, lambda seqs, n: len(seqs) > 1)
    with pytest.warns(UserWarning, match=r"llama_decode returned -3.*: 3 sequences are decoded one by one"):
        run = Pipeline(twin, text, trio()).run("batched")
    assert run.errors == {}
    assert answers(run) == alone


@pytest.mark.parametrize("at", ["its prompt", "its answer"])
@pytest.mark.parametrize("broken", [1, 2, 3])
def test_a_decode_that_fails_is_one_agents_failure(twin, text, monkeypatch, broken, at):
    alone = answers(Pipeline(twin, text, trio()).run("shared"))
    prompts = 6  # of the three together; 2 alone
    break_decodes(monkeypatch, lambda seqs, n: broken in seqs and (n in (2, prompts)) == (at == "its prompt"))
    with pytest.warns(UserWarning, match="one by one"):
        run = Pipeline(twin, text, trio()).run("batched")
    failed = f"a{broken}"
    others = {"a1", "a2", "a3"} - {failed}
    # the last one takes sequence 1 again
    assert set(run.errors) == {failed} | ({"last"} if broken != 2 else set())
    assert "llama_decode returned -3" in str(run.errors[failed])
    for name in others:
        assert answers(run)[name] == alone[name]


def test_a_draw_that_fails_is_one_agents_failure(twin, text, monkeypatch):
    pop_logits = Context.pop_logits

    def spend(self, seq_id):
        row = pop_logits(self, seq_id)
        return row * np.nan if seq_id == 2 else row

    whole = answers(Pipeline(twin, text, trio()).run("batched"))
    monkeypatch.setattr(Context, "pop_logits", spend)
    run = Pipeline(twin, text, trio()).run("batched")
    assert list(run.errors) == ["a2"]
    assert "a logit is nan" in str(run.errors["a2"])
    assert {name: whole[name] for name in ("a1", "a3", "last")} == {
        name: tokens for name, tokens in answers(run).items() if name != "a2"
    }


def test_a_fan_out_does_not_go_on_after_a_failed_decode(twin, text, monkeypatch):
    break_decodes(monkeypatch, lambda seqs, n: len(seqs) > 1)
    with pytest.raises(lab.DecodeError):
        lab.fan_out(twin, text, [[1], [2]], "batched")


def test_windows_slide_on_between_watermarks(tmp_path, rng):
    """A full cache of windowed layers, shared, has to have room for the agents, and for the document's rest."""
    tokens = rng.integers(0, 256, 1536, dtype=np.int32)
    agents = [
        *(Agent(f"at {n}", [n % 251] * 40, prefix_tokens=n, max_tokens=40) for n in (512, 1024, 1536)),
        Agent("with the last", [7] * 300, max_tokens=40),
        Agent("reviewer", [9], after=["at 512", "at 1536"], max_tokens=40),
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


def test_an_agent_before_the_window_needs_all_of_it(tmp_path, text):
    late = [Agent("first", [1], max_tokens=2), Agent("second", [2], ["first"], prefix_tokens=64, max_tokens=4)]
    with load_shape("sliding window", tmp_path) as windowed:
        run = Pipeline(windowed, text, late).run("shared")
        assert list(run.errors) == ["second"]
        assert "could not go back to 64 tokens" in str(run.errors["second"])
        whole = Pipeline(windowed, text, late).run("shared", swa_full=True)
        assert whole.errors == {}


def test_a_sequence_that_lost_its_window_is_not_gone_on_from(tmp_path, text, monkeypatch):
    failed = {}
    with load_shape("sliding window", tmp_path) as windowed, windowed.context(2048, n_seq_max=2, n_batch=64) as ctx:
        ctx.decode(np.tile(text, 3), 0)
        ctx.decode(text, 1)
        # when the last chunk fails, 0 has overwritten the window that it would go back to, and 1 has decoded nothing
        break_decodes(monkeypatch, lambda seqs, n: seqs == {0, 1})
        with pytest.warns(UserWarning, match="1 sequences are decoded one by one"):
            done = decode_together(ctx, {0: np.tile(text, 3)[:750], 1: text[:4]}, failed.__setitem__)
        assert (done, list(failed)) == ([1], [0])
        assert "llama_decode returned -3" in str(failed[0])
        assert (ctx.n_past(0), ctx.n_past(1)) == (0, 260)


@pytest.mark.parametrize("strategy", ["naive", "swarmkv"])
@pytest.mark.parametrize("per_context", [False, True])
def test_agents_with_contexts_of_their_own_work_in_threads(twin, text, strategy, per_context, all_cores):
    in_turn = Pipeline(twin, text, graph()).run(strategy, n_batch=64, n_threads=1)
    with lab.load_model(twin.path, n_gpu_layers=0, guard_per_context=per_context) as model:
        run = Pipeline(model, text, graph()).run(strategy, threads=3, n_batch=64, n_threads=1)
    assert run.errors == {}
    assert (run.compare(in_turn).max_abs_logit_diff == 0).all()
    assert answers(run) == answers(in_turn)


def test_threads_need_contexts_of_their_own(twin, text):
    for strategy, threads in (("batched", 2), ("shared", 2), ("pooled", 2)):
        with pytest.raises(lab.SwarmKVError, match=f"threads={threads} with {strategy}: .* naive or swarmkv"):
            Pipeline(twin, text, graph()).run(strategy, threads=threads)


@pytest.mark.parametrize("at", [1, 3, 8])
def test_an_interrupt_in_one_thread_ends_the_others(twin, text, at, all_cores):
    looks, stopped = [], []

    def watch(run):
        looks.append(run)
        if len(looks) == at:
            raise KeyboardInterrupt
        if len(looks) > at:  # a thread that was under way: the run has to stop it before its next decode
            end = time.monotonic() + 10
            while not run._stopped and all(stopped) and time.monotonic() < end:
                time.sleep(0.001)
            stopped.append(run._stopped)

    agents = [Agent(f"a{i}", [i], max_tokens=30) for i in range(1, 7)]
    with pytest.raises(KeyboardInterrupt):
        Pipeline(twin, text, agents).run("naive", threads=3, callback=watch)
    assert all(stopped)
    assert len(looks) <= at + 5  # once for each of the other agents
    assert not [ctx for ctx in twin._contexts if ctx._free.alive]
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_a_failure_in_a_thread_is_that_agents_alone(twin, text):
    def on_token(name, token):
        if name == "whole":
            raise ValueError("enough")

    run = Pipeline(twin, text, graph()).run("naive", threads=3, on_token=on_token)
    assert set(run.errors) == {"whole", "reviewer"}


def test_best_of_n_scores_its_forks_and_leaves_the_state_alone(twin, text):
    with twin.context(512, n_seq_max=16) as ctx:
        ctx.decode(text)
        before = ctx.logits()
        varied = lab.Sampling(temperature=2.0, seed=3)
        best = studies.best_of(ctx, 8, max_tokens=6, sampling=varied)
        assert sorted(best.seed) == list(range(3, 11))
        assert best.mean_logprob.is_monotonic_decreasing
        assert len({tuple(tokens) for tokens in best.tokens}) > 1
        np.testing.assert_array_equal(ctx.logits(), before)
        assert [ctx.n_past(i) for i in range(16)] == [256] + [0] * 15
        again = studies.best_of(ctx, 8, max_tokens=6, sampling=varied)
        assert again.tokens.tolist() == best.tokens.tolist()
        # the score is the model's own: one token's log-probability, from the logits
        (first,) = studies.best_of(ctx, 1, max_tokens=1, sampling=varied).itertuples()
        logits = np.float64(before)
        expected = logits[first.tokens[0]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert first.mean_logprob == pytest.approx(expected)
        with pytest.raises(lab.SwarmKVError, match="16 forks were asked for, and 15 of 16 sequences are free"):
            studies.best_of(ctx, 16)
