"""The server's engine on twins: tokens are counted, and answers are those that one context gives."""

import queue
import threading

import numpy as np
import pytest
import zoo

import swarmkv_lab as lab
from swarmkv_lab.llama.sampling import Sampler
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.serve.engine import Busy, Engine, Request


def engine(model, n_ctx=4096, n_seq_max=32, exact=False, cache=False, room=0, recompute=0, waiting=1000, **settings):
    asked = ContextSettings.of(n_ctx=n_ctx, n_seq_max=n_seq_max, **settings)
    how = {"exact": exact, "cache": cache}
    return Engine(model, asked, **how, room=room, recompute=recompute, waiting=waiting)


def ids(rng, n):
    return rng.integers(0, 256, n, dtype=np.int32)


class Asked:
    """A request that was submitted, and what came back."""

    def __init__(self, engine, tokens, max_tokens=4, sampler=None, **how):
        self.events = queue.Queue()
        self.request = Request(np.asarray(tokens, np.int32), max_tokens, sampler or Sampler(), self.events.put, **how)
        engine.submit(self.request)

    def answer(self):
        tokens = []
        while isinstance(event := self.events.get(timeout=60), int):
            tokens.append(event)
        self.end = event
        return tokens


def submit_all(engine, prompts, **how):
    """All of them before the engine looks."""
    with engine._wake:
        return [Asked(engine, prompt, **how) for prompt in prompts]


def alone(model, tokens, max_tokens=4):
    with model.context(len(tokens) + max_tokens) as ctx:
        ctx.decode(tokens)
        return list(ctx.stream(max_tokens))


def idle(engine):
    """Wait until nobody is at work; the cells and sequences that the cache has are those that the table says."""
    for _ in range(1000):
        if not engine.live and not engine.queue:
            break
        threading.Event().wait(0.01)
    held = engine.prefixes.entries
    assert not engine.live
    assert all(not entry.live for entry in held.values())
    for seq_id in range(engine.ctx.n_seq_max):
        n_past = engine.ctx.n_past(seq_id)
        assert n_past == (held[seq_id].start + held[seq_id].n if seq_id in held else 0)


def test_eight_at_once_decode_what_they_share_once(twin, rng):
    document, tails = ids(rng, 1024), [np.append([k], ids(rng, 32)) for k in range(8)]
    prompts = [np.concatenate([document, tail]) for tail in tails]
    serving = engine(twin)
    try:
        for expected in (1024 + 8 * 33, 8):  # and again: each prompt's last token alone
            before = serving.counts["computed_tokens"]
            asked = submit_all(serving, prompts)
            answers = [one.answer() for one in asked]
            assert serving.counts["computed_tokens"] - before == expected
            assert {one.end for one in asked} == {"length"}
        assert answers == [alone(twin, prompt) for prompt in prompts]
        idle(serving)
    finally:
        serving.close()


def test_prefixes_of_prefixes_and_a_hundred_at_once(twin, rng):
    document, roles = ids(rng, 300), [ids(rng, 40) for _ in range(5)]
    for k, role in enumerate(roles):
        role[0] = k
    prompts = [np.concatenate([document, roles[k % 5], [k // 5, k], ids(rng, 3)]) for k in range(100)]
    serving = engine(twin, n_seq_max=16)
    try:
        asked = submit_all(serving, prompts, max_tokens=2)
        answers = [one.answer() for one in asked]
        assert serving.counts["computed_tokens"] <= 300 + 5 * 40 + 100 * 5
        assert answers[::20] == [alone(twin, prompt, 2) for prompt in prompts[::20]]
        idle(serving)
    finally:
        serving.close()


def test_a_conversation_goes_on_from_its_own_answer(twin, rng):
    serving = engine(twin)
    try:
        prompt = ids(rng, 200)
        answer = Asked(serving, prompt, 8).answer()
        longer = Asked(serving, [*prompt, *answer, *ids(rng, 10)], 4)
        longer.answer()
        assert longer.request.computed == 10 + 1  # the answer's last token was never decoded
    finally:
        serving.close()


def test_strangers_make_room_and_are_there_again(twin, rng):
    """Documents that share nothing are decoded in turn; each gives way to the next, and comes back without a decode."""
    prompts = [np.append([k], ids(rng, 599)) for k in range(6)]
    serving = engine(twin, n_ctx=2048)
    try:
        for expected in (6 * 600, 6):
            before = serving.counts["computed_tokens"]
            asked = submit_all(serving, prompts)
            answers = [one.answer() for one in asked]
            assert serving.counts["computed_tokens"] - before == expected
        assert answers == [alone(twin, prompt) for prompt in prompts]
        idle(serving)
    finally:
        serving.close()


def test_who_has_no_cells_left_waits_and_answers_the_same(twin, rng):
    prompts = [np.append([k], ids(rng, 99)) for k in range(4)]
    serving = engine(twin, n_ctx=512)
    try:
        asked = submit_all(serving, prompts, max_tokens=200)
        answers = [one.answer() for one in asked]
        assert serving.counts["preempted"] > 0
        assert [one.end for one in asked] == ["length"] * 4
        assert answers == [alone(twin, prompt, 200) for prompt in prompts]
        idle(serving)
    finally:
        serving.close()


def test_a_short_prompt_does_not_wait_for_a_long_one(twin, rng):
    serving = engine(twin)
    try:
        long, short = submit_all(serving, [ids(rng, 3000), ids(rng, 20)], max_tokens=1)
        short.answer(), long.answer()
        assert short.request.times["ended"] < long.request.times["ended"]
    finally:
        serving.close()


def test_cancelled_full_closed(twin, rng):
    serving = engine(twin, waiting=3)
    try:
        asked = Asked(serving, ids(rng, 2000), 1000)
        assert isinstance(asked.events.get(timeout=60), int)
        serving.cancel(asked.request)
        asked.answer()
        assert asked.end == "cancelled"
        with serving._wake:
            many = [Asked(serving, ids(rng, 50), 3) for _ in range(3)]
            with pytest.raises(Busy):
                Asked(serving, ids(rng, 50), 3)
        serving.cancel(many[1].request)
        assert [len(one.answer()) for one in many] in ([3, 0, 3], [3, 3, 3], [3, 1, 3], [3, 2, 3])
        with pytest.raises(lab.ContextBudgetError, match="4,096"):
            Asked(serving, ids(rng, 4096))
        idle(serving)
        last = Asked(serving, ids(rng, 100), 3000)
        last.events.get(timeout=60)
    finally:
        serving.close()
    last.answer()
    assert isinstance(last.end, lab.SwarmKVError)


class Recording(Sampler):
    """Greedy, and keeps the logits."""

    def __init__(self):
        super().__init__()
        self.logits = []

    def sample(self, logits):
        self.logits.append(logits)
        return super().sample(logits)


@pytest.mark.parametrize("flash_attn", [False, True])
def test_exact_gives_the_bits_of_shared(twin, rng, flash_attn):
    document, questions = ids(rng, 700), {f"q{k}": ids(rng, 9 + k) for k in range(8)}
    run = lab.fan_out(twin, document, questions, "shared", max_tokens=6, flash_attn=flash_attn)
    serving = engine(twin, exact=True, flash_attn=flash_attn)
    try:
        samplers = [Recording() for _ in questions]
        with serving._wake:
            asked = [
                Asked(serving, np.concatenate([document, question]), 6, sampler, document_end=len(document))
                for sampler, question in zip(samplers, questions.values(), strict=True)
            ]
        for one, sampler, branch in zip(asked, samplers, run.branches, strict=True):
            assert one.answer() == branch.tokens
            np.testing.assert_array_equal(sampler.logits[0], branch.logits)
        assert serving.counts["computed_tokens"] == 700 + sum(map(len, questions.values()))
    finally:
        serving.close()


def test_documents_are_there_after_a_restart(twin, rng, tmp_path, monkeypatch):
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path))
    document, question = ids(rng, 300), ids(rng, 7)
    logits = []
    for computed in (307, 7):
        serving = engine(twin, exact=True, cache=True)
        try:
            sampler = Recording()
            Asked(serving, np.concatenate([document, question]), 3, sampler, document_end=300).answer()
            assert serving.counts["computed_tokens"] == computed
            logits.append(sampler.logits)
        finally:
            serving.close()
    np.testing.assert_array_equal(*logits)


def test_composed_shares_a_document_behind_other_prompts(twin, rng):
    document = ids(rng, 600)
    heads = [np.append([k], ids(rng, 19 + k)) for k in range(8)]
    prompts = [np.concatenate([head, document, [k], ids(rng, 9)]) for k, head in enumerate(heads)]
    serving = engine(twin, room=256, recompute=32)
    try:
        asked = submit_all(serving, prompts)
        for one in asked:
            one.answer()
        heads_and_tails = sum(map(len, heads)) + 8 * 10
        assert serving.counts["computed_tokens"] == 600 + heads_and_tails + 7 * 32
        assert [one.request.how for one in asked] == ["computed"] + ["composed"] * 7
        before = serving.counts["computed_tokens"]
        again = submit_all(serving, prompts)
        for one in again:
            one.answer()
        assert serving.counts["computed_tokens"] - before == 8
        idle(serving)
    finally:
        serving.close()


def test_a_mixed_crowd_leaves_nothing_behind(twin, rng):
    documents = [ids(rng, n) for n in (40, 120, 300)]
    serving = engine(twin, n_ctx=1024, n_seq_max=8)
    try:
        asked = []
        for k in range(150):
            tokens = np.concatenate([documents[k % 3], ids(rng, 1 + k % 7)])
            asked.append(Asked(serving, tokens, 1 + k % 5))
            if k % 10 == 0:
                serving.cancel(asked[-1].request)
        for one in asked:
            one.answer()
        assert {one.end for one in asked} <= {"length", "stop", "cancelled"}
        idle(serving)
        assert sum(serving.counts[f"requests_{how}"] for how in ("length", "stop", "cancelled")) == 150
    finally:
        serving.close()


@pytest.mark.parametrize(
    ("kind", "swa_full"),
    [
        ("lfm2", False),
        ("qwen35", False),
        ("mamba2", False),
        ("lfm2-window", False),
        ("gemma4", True),
        ("gemma4", False),
    ],
)
def test_models_that_cannot_go_back_fork_where_prompts_part(tmp_path, rng, kind, swa_full):
    zoo.write(kind, tmp_path / "model.gguf")
    document = ids(rng, 200)
    prompts = [np.concatenate([document, [k], ids(rng, 20)]) for k in range(4)]
    with lab.load_model(tmp_path / "model.gguf") as model:
        serving = engine(model, 2048, 16, swa_full=swa_full)
        try:
            for expected in (200 + 4 * 21, 4 * 21):
                before = serving.counts["computed_tokens"]
                with serving._wake:
                    asked = [Asked(serving, prompt, marks=frozenset({200})) for prompt in prompts]
                answers = [one.answer() for one in asked]
                assert serving.counts["computed_tokens"] - before <= expected
                assert answers == [alone(model, prompt) for prompt in prompts]
            longer = Asked(serving, [*prompts[0], *answers[0], *ids(rng, 5)], 2)
            longer.answer()
            assert longer.request.computed <= 21 + 4 + 5
            idle(serving)
        finally:
            serving.close()


def test_one_sequence_at_a_time_where_a_decode_takes_no_more(twin, rng):
    serving = engine(twin)
    try:
        object.__setattr__(twin.kind, "packs", False)
        prompts = [ids(rng, 30) for _ in range(4)]
        asked = submit_all(serving, prompts)
        assert [one.answer() for one in asked] == [alone(twin, prompt) for prompt in prompts]
    finally:
        object.__setattr__(twin.kind, "packs", True)
        serving.close()
