"""Generation: sequences that grow by one token each, all of them in one decode; one sequence is the simplest case."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.llama.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from swarmkv_lab.llama.context import Context

Asked = Mapping[int, tuple[int, Sampling | Sampler]]
"""{seq_id: (max_tokens, sampling)}; every sequence has a sampler of its own."""
Failed = Callable[[int, SwarmKVError], None]
"""Told of a sequence that could not go on, and why; without one the error is raised, and ends all of them."""


def generate_together(
    ctx: "Context", asked: Asked, stopped: Callable[[int], bool] = lambda seq_id: False, failed: Failed | None = None
) -> Iterator[dict[int, int]]:
    """``Context.stream`` for several sequences in step: yields {seq_id: token} of those that have not finished.

    stopped: asked before each further token of a sequence, whether nobody wants it any more. failed: see
    decode_together.
    """
    left = {seq_id: whole_number("max_tokens", max_tokens) for seq_id, (max_tokens, _) in asked.items()}
    samplers = {seq_id: how if isinstance(how, Sampler) else Sampler(how) for seq_id, (_, how) in asked.items()}
    return _steps(ctx, left, samplers, stopped, failed)


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
    left: dict[int, int],
    samplers: Mapping[int, Sampler],
    stopped: Callable[[int], bool],
    failed: Failed | None,
) -> Iterator[dict[int, int]]:
    def gone(seq_id: int, error: SwarmKVError) -> None:
        if failed is None:
            raise error
        failed(seq_id, error)

    step: dict[int, int] = dict.fromkeys(left, -1)
    seen: dict[int, int] | None = None  # how often each sequence had changed when its last token was drawn
    while step:
        live = [seq_id for seq_id in step if left[seq_id] and not stopped(seq_id)]
        with ctx.guard:
            if seen is not None:
                for seq_id in [seq_id for seq_id in live if ctx.changes(seq_id) != seen[seq_id]]:
                    live.remove(seq_id)
                    gone(seq_id, SwarmKVError(f"sequence {seq_id} was changed while its answer was generated"))
                live = decode_together(ctx, {seq_id: [step[seq_id]] for seq_id in live}, failed)
            step = {}
            for seq_id in live:
                try:
                    step[seq_id] = samplers[seq_id].sample(ctx.pop_logits(seq_id))
                    left[seq_id] -= 1
                except SwarmKVError as error:
                    gone(seq_id, error)
            seen = {seq_id: ctx.changes(seq_id) for seq_id in step}
        step = {seq_id: token for seq_id, token in step.items() if not ctx.model.is_eog(token)}
        if step:
            yield step
