"""Forks: sequences that are lent and come back, and n answers from one state with their scores."""

import numpy as np
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies


def test_forks_share_are_leased_and_come_back(twin, document):
    with twin.context(512, n_seq_max=4) as ctx:
        ctx.decode(document)
        n, whole = len(document), ctx.logits()
        with ctx.fork(2) as forks:
            assert forks == [1, 2]
            ctx.decode([5], forks[0])
            with ctx.fork(1, forks[0]) as (fork,):  # a fork of a fork: the document, 5, and its own
                assert (fork, ctx.n_past(fork)) == (3, n + 1)
                np.testing.assert_array_equal(ctx.logits(fork), ctx.logits(forks[0]))
                with pytest.raises(lab.SwarmKVError, match=r"1 .* 0 .* 4"), ctx.fork(1):
                    pass
            ctx.clear(forks[1])  # a lease is a lease, also of an empty sequence
            with ctx.fork(1) as (again,):
                assert again == 3
        assert [ctx.n_past(i) for i in range(4)] == [n, 0, 0, 0]
        np.testing.assert_array_equal(ctx.logits(0), whole)


def test_an_agents_state_is_fanned_out_with_the_same_calls(twin, document):
    """Prefix, question and answer so far are a prefix again."""
    with twin.context(512) as ctx:
        ctx.decode(document)
        ctx.decode([1, 2, 3])
        answer = list(ctx.stream(4))
        ctx.decode(answer[-1:])  # the last token yielded is not yet decoded
        so_far = np.concatenate([document, [1, 2, 3], answer]).astype(np.int32)
        snapshot = lab.KVSnapshot.capture(ctx, so_far)
    forks = lab.fan_out(twin, snapshot, [[7], [8]], "shared", max_tokens=3)
    naive = lab.fan_out(twin, so_far, [[7], [8]], "naive", max_tokens=3)
    assert forks.compare(naive).same_tokens.all()


def test_best_of_n_scores_its_forks_and_leaves_the_state_alone(twin, document):
    with twin.context(512, n_seq_max=16) as ctx:
        ctx.decode(document)
        before = ctx.logits()
        varied = lab.Sampling(temperature=2.0, seed=3)
        best = studies.best_of(ctx, 8, max_tokens=6, sampling=varied)
        assert sorted(best.seed) == list(range(3, 11))
        assert best.mean_logprob.is_monotonic_decreasing
        assert len({tuple(tokens) for tokens in best.tokens}) > 1
        np.testing.assert_array_equal(ctx.logits(), before)
        assert [ctx.n_past(i) for i in range(16)] == [len(document)] + [0] * 15
        again = studies.best_of(ctx, 8, max_tokens=6, sampling=varied)
        assert again.tokens.tolist() == best.tokens.tolist()
        # the score is the model's own: one token's log-probability, from the logits
        (first,) = studies.best_of(ctx, 1, max_tokens=1, sampling=varied).itertuples()
        logits = np.float64(before)
        expected = logits[first.tokens[0]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert first.mean_logprob == pytest.approx(expected)
        with pytest.raises(lab.SwarmKVError, match=r"16 .* 15 .* 16"):
            studies.best_of(ctx, 16)
