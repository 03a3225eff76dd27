"""Generation: sequences that grow by one token a step, all of them in one decode."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from swarmkv_lab.llama.context import Context

Failed = Callable[[int, SwarmKVError], None]
"""Told of a sequence that could not go on, and why; without one the error is raised, and ends all of them."""


def generate_together(
    ctx: "Context",
    asked: Mapping[int, tuple[int, Sampling | Sampler]],
    stopped: Callable[[int], bool] = lambda seq_id: False,
    failed: Failed | None = None,
) -> Iterator[dict[int, int]]:
    """``Context.stream`` for several sequences in step: yields {seq_id: token} of those that have not finished.

    asked: {seq_id: (max_tokens, sampling)}; every sequence has a sampler of its own. stopped: asked before each further
    token of a sequence, whether nobody wants it any more. failed: see decode_together.
    """
    for max_tokens, _ in asked.values():
        if max_tokens < 0:
            raise SwarmKVError(f"max_tokens={max_tokens}: it must be at least 0")
    return _steps(ctx, asked, stopped, failed)


def decode_together(
    ctx: "Context", tokens_by_seq: Mapping[int, Sequence[int] | np.ndarray], failed: Failed | None = None
) -> list[int]:
    """``Context.decode_many``, and the sequences that it succeeded for.

    With ``failed``, what cannot be decoded together is decoded one by one, which is warned of, and it is told of each
    sequence that cannot be decoded by itself either.
    """
    if not tokens_by_seq:
        return []
    past = {seq_id: ctx.n_past(seq_id) for seq_id in tokens_by_seq}
    try:
        ctx.decode_many(tokens_by_seq)
        return list(tokens_by_seq)
    except SwarmKVError as error:
        if failed is None:
            raise
        together = error
    # A sequence that lost its sliding window on the way back has nothing to go on from.
    whole = {seq_id for seq_id, n_past in past.items() if ctx.n_past(seq_id) == n_past and len(past) > 1}
    if whole:
        warnings.warn(f"{together}: {len(whole)} sequences are decoded one by one", stacklevel=2)
    done = []
    for seq_id, tokens in tokens_by_seq.items():
        if seq_id in whole:
            done += decode_together(ctx, {seq_id: tokens}, failed)
        else:
            failed(seq_id, together)
    return done


def _steps(
    ctx: "Context",
    asked: Mapping[int, tuple[int, Sampling | Sampler]],
    stopped: Callable[[int], bool],
    failed: Failed | None,
) -> Iterator[dict[int, int]]:
    samplers = {seq_id: how if isinstance(how, Sampler) else Sampler(how) for seq_id, (_, how) in asked.items()}
    step = dict.fromkeys(asked, -1)
    for i in range(max((max_tokens for max_tokens, _ in asked.values()), default=0)):
        live = [seq_id for seq_id in step if i < asked[seq_id][0] and not stopped(seq_id)]
        with ctx.guard:
            if i:
                live = decode_together(ctx, {seq_id: [step[seq_id]] for seq_id in live}, failed)
            step = {}
            for seq_id in live:
                try:
                    step[seq_id] = samplers[seq_id].sample(ctx.spend_logits(seq_id))
                except SwarmKVError as error:
                    if failed is None:
                        raise
                    failed(seq_id, error)
        step = {seq_id: token for seq_id, token in step.items() if not ctx.model.is_eog(token)}
        if not step:
            return
        yield step
