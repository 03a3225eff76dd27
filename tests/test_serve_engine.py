"""The server's engine on twins: tokens are counted, and answers are those that one context gives."""

import queue
import threading
from contextlib import closing

import numpy as np
import pytest
import zoo
from conftest import load_shape, often

import swarmkv_lab as lab
from swarmkv_lab.errors import DecodeError
from swarmkv_lab.llama.sampling import Sampler
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.serve.engine import Engine, Refused, Request
from swarmkv_lab.snapshot.prefix_cache import cached


def engine(model, n_ctx=4096, n_seq_max=32, exact=False, cache=False, room=0, recompute=0, **settings):
    asked = ContextSettings(n_ctx=n_ctx, n_seq_max=n_seq_max, **settings)
    return closing(Engine(model, asked, exact, cache, room=room, recompute=recompute))


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
        while isinstance(event := self.events.get(timeout=300), int):
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
    for _ in range(3000):
        if not engine.live and not engine.queue:
            break
        threading.Event().wait(0.01)
    held = engine.prefixes.entries
    assert not engine.live
    assert not any(entry.live for entry in held.values())
    for seq_id in range(engine.ctx.n_seq_max):
        n_past = engine.ctx.n_past(seq_id)
        assert n_past == (held[seq_id].start + held[seq_id].n if seq_id in held else 0)


class Failing(Sampler):
    """Fails at an answer's first token."""

    def sample(self, logits):
        raise ArithmeticError


class Recording(Sampler):
    """Greedy, and keeps the logits."""

    def __init__(self):
        super().__init__()
        self.logits = []

    def sample(self, logits):
        self.logits.append(logits)
        return super().sample(logits)


# -- what is shared


def test_eight_at_once_decode_what_they_share_once(twin, rng):
    document, tails = ids(rng, 1024), [np.append([k], ids(rng, 32)) for k in range(8)]
    prompts = [np.concatenate([document, tail]) for tail in tails]
    with engine(twin) as serving:
        for expected in (1024 + 8 * 33, 8):  # and again: each prompt's last token alone
            before = serving.counts["computed_tokens"]
            asked = submit_all(serving, prompts)
            answers = [one.answer() for one in asked]
            assert serving.counts["computed_tokens"] - before == expected
            assert {one.end for one in asked} == {"length"}
        assert answers == [alone(twin, prompt) for prompt in prompts]
        idle(serving)


def test_prefixes_of_prefixes_and_a_hundred_at_once(twin, rng):
    document, roles = ids(rng, 300), [np.append([k], ids(rng, 39)) for k in range(5)]
    prompts = [np.concatenate([document, roles[k % 5], [k // 5, k], ids(rng, 3)]) for k in range(100)]
    with engine(twin, n_seq_max=16) as serving:
        asked = submit_all(serving, prompts, max_tokens=2)
        answers = [one.answer() for one in asked]
        assert serving.counts["computed_tokens"] <= 300 + 5 * 40 + 100 * 5
        assert answers[::20] == [alone(twin, prompt, 2) for prompt in prompts[::20]]
        idle(serving)


def test_a_conversation_goes_on_from_its_own_answer(twin, rng):
    with engine(twin) as serving:
        prompt = ids(rng, 200)
        answer = Asked(serving, prompt, 8).answer()
        longer = Asked(serving, [*prompt, *answer, *ids(rng, 10)], 4)
        longer.answer()
        assert longer.request.computed == 10 + 1  # the answer's last token was never decoded


@pytest.mark.parametrize("n_common", [0, 40])
def test_strangers_make_room_and_are_there_again(twin, rng, monkeypatch, n_common):
    """Documents that share a short head are decoded in turn; each gives way to the next, and comes back as it was."""
    head = ids(rng, n_common)
    prompts = [np.concatenate([head, [k], ids(rng, 599 - n_common)]) for k in range(6)]
    with engine(twin) as serving:
        extend, used = serving.prefixes.extend, []
        monkeypatch.setattr(serving.prefixes, "extend", lambda *one: used.append((extend(*one), serving.prefixes.free)))
        for expected in (6 * 600 - 5 * n_common, 6):
            before = serving.counts["computed_tokens"]
            asked = submit_all(serving, prompts)
            answers = [one.answer() for one in asked]
            assert serving.counts["computed_tokens"] - before == expected
            assert expected == 6 or min(free for _, free in used) > 4096 - 700  # one document at a time
        assert answers == [alone(twin, prompt) for prompt in prompts]
        idle(serving)


def test_what_cannot_be_had_back_is_decoded(twin, rng, monkeypatch):
    prompts = [np.append([k], ids(rng, 599)) for k in range(3)]
    with engine(twin, n_ctx=1024) as serving:
        monkeypatch.setattr(serving.ctx, "set_state", lambda *_: serving.ctx.truncate(10_000))  # a SwarmKVError
        for _ in range(2):
            asked = submit_all(serving, prompts)
            assert [one.answer() for one in asked] == [alone(twin, prompt) for prompt in prompts]
        idle(serving)


def test_composed_shares_a_document_behind_other_prompts(twin, rng):
    document = ids(rng, 600)
    heads = [np.append([k], ids(rng, 19 + k)) for k in range(8)]
    prompts = [np.concatenate([head, document, [k], ids(rng, 9)]) for k, head in enumerate(heads)]
    with engine(twin, room=256, recompute=32) as serving:
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


def test_composed_ends_where_positions_do(twin, rng):
    """Behind a shorter system prompt a document stays where it is, so that less is left behind it, and all is used."""
    document = ids(rng, 500)
    with engine(twin, n_ctx=1024, room=256, recompute=8) as serving:
        Asked(serving, [*ids(rng, 150), *document, 1]).answer()
        short = Asked(serving, [2, *document, *ids(rng, 9)], 10_000)
        assert (len(short.answer()), short.end) == (1024 - (256 + 149) - 510 + 1, "length")
        assert short.request.how == "composed"
        whole = Asked(serving, [3, *document, *ids(rng, 260)], 10_000)  # it would end too late
        assert (len(whole.answer()), whole.end) == (768 - 761, "length")
        assert whole.request.how == "computed"
        idle(serving)


@pytest.mark.parametrize("name", ["lfm2", "qwen35", "mamba2", "lfm2-window", "gemma4", "gemma4 whole"])
def test_models_that_cannot_go_back_fork_where_prompts_part(tmp_path, rng, name):
    kind, *whole = name.split()
    zoo.write(kind, tmp_path / "model.gguf")
    document = ids(rng, 200)
    prompts = [np.concatenate([document, [k], ids(rng, 20)]) for k in range(4)]
    with lab.load_model(tmp_path / "model.gguf") as model:
        with engine(model, 2048, 16, swa_full=bool(whole)) as serving:
            for expected in (200 + 4 * 21, 4 * 21):
                before = serving.counts["computed_tokens"]
                asked = submit_all(serving, prompts, marks=frozenset({200}))
                answers = [one.answer() for one in asked]
                assert serving.counts["computed_tokens"] - before <= expected
                assert answers == [alone(model, prompt) for prompt in prompts]
            longer = Asked(serving, [*prompts[0], *answers[0], *ids(rng, 5)], 2)
            longer.answer()
            assert longer.request.computed <= 21 + 4 + 5
            idle(serving)
        with engine(model, 256, 2, swa_full=bool(whole)) as serving:  # no room for two, nor a sequence for a copy
            asked = submit_all(serving, prompts, max_tokens=20)
            assert [one.answer() for one in asked] == [alone(model, prompt, 20) for prompt in prompts]
            idle(serving)


# -- who waits, and for how long


def test_who_has_no_cells_left_waits_and_answers_the_same(twin, rng):
    prompts = [np.append([k], ids(rng, 99)) for k in range(4)]
    with engine(twin, n_ctx=512) as serving:
        asked = submit_all(serving, prompts, max_tokens=200)
        answers = [one.answer() for one in asked]
        assert serving.counts["preempted"] > 0
        assert [one.end for one in asked] == ["length"] * 4
        assert answers == [alone(twin, prompt, 200) for prompt in prompts]
        assert [one.request.shared for one in asked] == [0] * 4  # what it had itself before is not shared
        idle(serving)


def test_a_spliced_one_waits_again_and_all_end(twin, rng):
    document = ids(rng, 300)
    prompts = [np.concatenate([np.append([k], ids(rng, 40 + 9 * k)), document, ids(rng, 5)]) for k in range(5)]
    with engine(twin, n_ctx=768, room=128, recompute=16) as serving:
        asked = submit_all(serving, prompts, max_tokens=150)
        assert [len(one.answer()) for one in asked] == [150] * 5
        assert serving.counts["preempted"] > 0
        assert all(one.request.shared < len(one.request.tokens) for one in asked)
        idle(serving)


def test_a_short_prompt_does_not_wait_for_a_long_one(twin, rng):
    with engine(twin) as serving:
        long, short = submit_all(serving, [ids(rng, 3000), ids(rng, 20)], max_tokens=1)
        short.answer(), long.answer()
        assert short.request.times["ended"] < long.request.times["ended"]


def test_nor_does_a_stranger_behind_many_who_do(twin, rng):
    document = ids(rng, 3000)
    with engine(twin) as serving:
        prompts = [np.append(document, [k, 1]) for k in range(50)]
        *crowd, short = submit_all(serving, [*prompts, ids(rng, 20)], max_tokens=1)
        for one in (*crowd, short):
            one.answer()
        assert short.request.times["ended"] < crowd[0].request.times["ended"]
        assert serving.counts["computed_tokens"] == 3000 + 50 * 2 + 20


@pytest.mark.parametrize("room", [0, 64])
@pytest.mark.parametrize("n_seq_max", [1, 2, 3])
def test_few_sequences_are_enough(twin, rng, n_seq_max, room):
    document, heads = ids(rng, 120), [np.append([k], ids(rng, 9)) for k in range(4)]
    prompts = [np.concatenate([heads[k % 4], document, heads[k // 4], heads[0][: k % 3]]) for k in range(16)]
    with engine(twin, n_ctx=512, n_seq_max=n_seq_max, room=room, recompute=8, n_batch=32) as serving:
        for _ in range(2):
            for one in submit_all(serving, prompts):
                assert len(one.answer()) == 4
        idle(serving)


def test_one_sequence_at_a_time_where_a_decode_takes_no_more(tmp_path, rng):
    with load_shape("two layers", tmp_path) as model:
        object.__setattr__(model.kind, "packs", False)
        document = ids(rng, 600)
        prompts = [np.append(document, ids(rng, 1 + k)) for k in range(4)] + [ids(rng, 30) for _ in range(4)]
        with engine(model) as serving:
            asked = submit_all(serving, prompts)
            assert [one.answer() for one in asked] == [alone(model, prompt) for prompt in prompts]


def test_the_shortest_and_the_longest(twin, rng):
    with engine(twin, n_ctx=256) as serving:
        one, full = Asked(serving, [7], 1), Asked(serving, ids(rng, 255), 50)
        assert (one.answer(), len(full.answer())) == (alone(twin, [7], 1), 1)
        assert one.end == full.end == "length"
        for n in (0, 256):
            with pytest.raises(lab.ContextBudgetError, match=f"256.* {n}"):
                Asked(serving, ids(rng, n))
        idle(serving)


# -- what goes wrong


def test_cancelled_and_closed(twin, rng):
    with engine(twin) as serving:
        asked = Asked(serving, ids(rng, 2000), 1000)
        assert isinstance(asked.events.get(timeout=60), int)
        asked.request.cancelled = True
        asked.answer()
        assert asked.end == "cancelled"
        with serving._wake:
            many = [Asked(serving, ids(rng, 50), 3) for _ in range(3)]
            many[1].request.cancelled = True
        assert [len(one.answer()) for one in many] == [3, 0, 3]
        idle(serving)
        last, waiting = submit_all(serving, [ids(rng, 100), ids(rng, 3500)], max_tokens=3000)
        last.events.get(timeout=60)
    for one in (last, waiting):
        one.answer()
        assert one.end.status == 503
    with pytest.raises(Refused):
        Asked(serving, ids(rng, 9))


@pytest.mark.parametrize("room", [0, 256])
@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_the_awaited_one_goes(twin, rng, room, how):
    """Whoever waits for it, or has begun and is to take its cells, answers all the same."""
    document = ids(rng, 1500)
    heads = [np.append([k], ids(rng, 30 + 300 * k)) if room else [] for k in range(3)]
    prompts = [np.concatenate([head, document, [k]]).astype(np.int32) for k, head in enumerate(heads)]
    with engine(twin, room=room, n_batch=128) as serving:
        with serving._wake:
            first = Asked(serving, prompts[0], sampler=Failing() if how == "failed" else None)
            others = [Asked(serving, prompt) for prompt in prompts[1:]]
        while how == "cancelled" and first.request.computed < 300:
            threading.Event().wait(0.001)
        first.request.cancelled = how == "cancelled"
        assert [len(one.answer()) for one in others] == [4, 4]
        first.answer()
        assert first.end == "cancelled" if how == "cancelled" else isinstance(first.end, ArithmeticError)
        assert room or others[0].request.computed + others[0].request.shared == len(prompts[1])
        idle(serving)


@pytest.mark.filterwarnings("ignore:.*one by one")
def test_an_error_of_one_is_not_the_others(twin, rng, monkeypatch):
    prompts = [[k, *ids(rng, 30)] for k in range(4)]
    with engine(twin) as serving:
        decode_many = serving.ctx.decode_many

        def failing(rows, **how):
            if any(row[0] == 2 and len(row) > 1 for row in rows.values()):
                raise DecodeError("no")
            decode_many(rows, **how)

        monkeypatch.setattr(serving.ctx, "decode_many", failing)
        asked = submit_all(serving, prompts)
        answers = [one.answer() for one in asked]
        assert [type(one.end) for one in asked] == [str, str, DecodeError, str]
        assert answers[3] == alone(twin, prompts[3])
        idle(serving)


def test_a_fault_ends_those_at_work_and_nobody_after_them(twin, rng, monkeypatch):
    with engine(twin) as serving:
        faults, rows, match = [1], serving._rows, serving.prefixes.match
        monkeypatch.setattr(serving, "_rows", lambda: 1 // 0 if faults and faults.pop() else rows())
        monkeypatch.setattr(serving.prefixes, "match", lambda t, *a: 1 // 0 if t[0] == 9 else match(t, *a))
        for prompt, end in (([1, 2], ZeroDivisionError), ([9, 2], ZeroDivisionError), ([1, 2], str)):
            asked = Asked(serving, prompt)
            asked.answer()
            assert isinstance(asked.end, end)
        idle(serving)


def test_exact_begins_anew_after_a_fault(twin, rng, monkeypatch):
    prompt = ids(rng, 30)
    with engine(twin, exact=True) as serving:
        faults, pop_logits = [1], serving.ctx.pop_logits
        monkeypatch.setattr(serving.ctx, "pop_logits", lambda i: 1 // 0 if faults and faults.pop() else pop_logits(i))
        first, second = submit_all(serving, [prompt, prompt])
        first.answer()
        assert isinstance(first.end, ZeroDivisionError)
        assert second.answer() == alone(twin, prompt)


@pytest.mark.parametrize("exact", [False, True])
def test_a_model_that_is_closed_ends_all(tmp_path, rng, exact):
    with load_shape("two layers", tmp_path) as model, engine(model, exact=exact) as serving:
        asked = submit_all(serving, [ids(rng, 40) for _ in range(3)], max_tokens=3000)
        asked[0].events.get(timeout=60)
        model.close()
        for one in [*asked, Asked(serving, [1])]:
            one.answer()
            assert isinstance(one.end, lab.SwarmKVError)


def test_exact_needs_a_sequence_for_the_document(twin):
    with pytest.raises(lab.SwarmKVError, match="n_seq_max"):
        engine(twin, exact=True, n_seq_max=1)


# -- exact


@pytest.mark.parametrize("flash_attn", [False, True])
def test_exact_gives_the_bits_of_shared(twin, rng, flash_attn):
    document, questions = ids(rng, 700), {f"q{k}": ids(rng, 9 + k) for k in range(8)}
    run = lab.fan_out(twin, document, questions, "shared", max_tokens=6, flash_attn=flash_attn)
    with engine(twin, exact=True, flash_attn=flash_attn) as serving:
        samplers = [Recording() for _ in questions]
        with serving._wake:
            asked = [
                Asked(serving, np.concatenate([document, question]), 6, sampler, marks=frozenset({len(document)}))
                for sampler, question in zip(samplers, questions.values(), strict=True)
            ]
        for one, sampler, branch in zip(asked, samplers, run.branches, strict=True):
            assert one.answer() == branch.tokens
            np.testing.assert_array_equal(sampler.logits[0], branch.logits)
        assert serving.counts["computed_tokens"] == 700 + sum(map(len, questions.values()))


def test_exact_cancelled_and_closed(twin, rng):
    with engine(twin, exact=True) as serving:
        running, waiting = submit_all(serving, [ids(rng, 100)] * 2, max_tokens=3000, marks=frozenset({90}))
        running.events.get(timeout=60)
        for one in (waiting, running):
            one.request.cancelled = True
        for one in (running, waiting):
            one.answer()
            assert one.end == "cancelled"
        running = Asked(serving, ids(rng, 100), 3000, marks=frozenset({90}))
        running.events.get(timeout=60)
    running.answer()
    assert running.end.status == 503


def test_documents_of_exact_take_turns_and_keep_their_bits(twin, rng):
    documents, question, logits = [ids(rng, 300) for _ in range(2)], ids(rng, 7), []
    with engine(twin, exact=True) as serving:
        for document in [*documents, *documents]:
            sampler = Recording()
            Asked(serving, np.concatenate([document, question]), 3, sampler, marks=frozenset({300})).answer()
            logits.append(sampler.logits)
        assert serving.counts["computed_tokens"] == 2 * 300 + 4 * 7
    np.testing.assert_array_equal(logits[:2], logits[2:])


def test_documents_are_there_after_a_restart(twin, rng, tmp_path, monkeypatch):
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path))
    document, question = ids(rng, 300), ids(rng, 7)
    logits = []
    for computed in (307, 7):
        with engine(twin, exact=True, cache=True) as serving:
            sampler = Recording()
            Asked(serving, np.concatenate([document, question]), 3, sampler, marks=frozenset({300})).answer()
            assert serving.counts["computed_tokens"] == computed
            logits.append(sampler.logits)
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("room", [0, 100])
def test_what_was_served_in_batches_is_there_after_a_restart(twin, rng, tmp_path, monkeypatch, room):
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path))
    document = ids(rng, 600)
    *prompts, last = (np.concatenate([document, [k], ids(rng, 6)]) for k in range(4))
    how = {"room": room, "recompute": 4}
    with engine(twin, cache=True, **how) as serving:
        [one.answer() for one in submit_all(serving, prompts)]
    assert len(cached()) == 1  # three prompts, and one document
    answers = []
    for cache, computed in ((True, 7), (False, 607)):
        with engine(twin, cache=cache, **how) as serving:
            answers.append(Asked(serving, last).answer())
            assert serving.counts["computed_tokens"] == computed
    assert answers[0] == answers[1]
    with engine(twin, exact=True, cache=True) as serving:  # its bits are not a prefill's
        Asked(serving, last, marks=frozenset({600})).answer()
        assert serving.counts["computed_tokens"] == 607


# -- many


@pytest.mark.soak
@pytest.mark.parametrize("layout", ["as_sent", "composed", "hybrid"])
def test_a_mixed_crowd_leaves_nothing_behind(twin, tmp_path, rng, layout):
    """Four at once, again and again: of a hundred ten leave early, and five are too long, empty or fail."""
    zoo.write("lfm2", tmp_path / "model.gguf")
    documents, heads = [ids(rng, n) for n in (40, 120, 300)], [ids(rng, n) for n in (1, 8, 20)]
    asked, refused = [], []

    def send(serving, seed, n):
        rng = np.random.default_rng(seed)
        for k in range(n):
            at, most = int(rng.integers(9)), int(rng.choice([1, 2, 5, 40]))
            prompt = np.concatenate([heads[at // 3], documents[at % 3], ids(rng, 1 + rng.integers(30))])
            if k % 100 in (33, 66):
                with pytest.raises(lab.ContextBudgetError):
                    Asked(serving, np.resize(prompt, 1024 if k % 2 else 0))
                refused.append(k)
                continue
            failing = Failing() if k % 100 in (5, 50, 99) else None
            one = Asked(serving, prompt, most, failing, marks=frozenset({len(heads[at // 3])}))
            asked.append(one)
            if k % 10 == 7:
                threading.Event().wait(0.01 * rng.random())
                one.request.cancelled = True
            if len(asked) % 4 == 0:
                one.tokens = one.answer()

    with lab.load_model(tmp_path / "model.gguf") as hybrid:
        model, room = (hybrid, 0) if layout == "hybrid" else (twin, 128 * (layout == "composed"))
        with engine(model, n_ctx=1024, n_seq_max=8, room=room, recompute=8) as serving:
            threads = [threading.Thread(target=send, args=(serving, k, often(1000) // 4)) for k in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            answers = [one.tokens if hasattr(one, "tokens") else one.answer() for one in asked]
            idle(serving)
            counts, requests = serving.counts, [one.request for one in asked]
            assert len(requests) + len(refused) == often(1000) // 4 * 4
            ended = [counts[f"requests_{how}"] for how in ("length", "stop", "cancelled", "error")]
            assert sum(ended) == len(requests)
            assert ended[3] == sum(isinstance(one.end, ArithmeticError) for one in asked)
            assert counts["generated_tokens"] == sum(map(len, answers))
            assert counts["prompt_tokens"] == sum(len(one.tokens) for one in requests)
            assert counts["computed_tokens"] == sum(one.computed for one in requests)
            assert counts["shared_tokens"] == sum(one.shared for one in requests)
            for one in requests:
                if one.ended == "length" and not one.preempted:
                    assert one.computed + one.shared == len(one.tokens)
            for one, answer in list(zip(asked, answers, strict=True))[:: max(1, len(asked) // 20)]:
                if one.end == "length" and not room:
                    assert answer == alone(model, one.request.tokens, one.request.max_tokens)
            full = Asked(serving, ids(rng, serving.limit - 1))  # every cell can still be had
            assert (len(full.answer()), full.end) == (1, "length")
            idle(serving)
