"""Generation: sequences that grow by one token a step, all of them in one decode."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from swarmkv_lab.llama.context import Context


def generate_together(
    ctx: "Context", seq_ids: Sequence[int], max_tokens: int, sampling: Sampling
) -> Iterator[dict[int, int]]:
    """``Context.stream`` for several sequences in step: yields {seq_id: token} of those that have not finished.

    Every sequence has a sampler of its own, with the same settings and seed.
    """
    if max_tokens < 0:
        raise SwarmKVError(f"max_tokens={max_tokens}: it must be at least 0")
    return _steps(ctx, {seq_id: Sampler(sampling) for seq_id in seq_ids}, max_tokens)


def _steps(ctx: "Context", samplers: Mapping[int, Sampler], max_tokens: int) -> Iterator[dict[int, int]]:
    step: dict[int, int] = {}
    for i in range(max_tokens):
        with ctx.guard:
            if i:
                ctx.decode_many({seq_id: [token] for seq_id, token in step.items()})
            live = step if i else samplers
            step = {seq_id: samplers[seq_id].sample(ctx.spend_logits(seq_id)) for seq_id in live}
        step = {seq_id: token for seq_id, token in step.items() if not ctx.model.is_eog(token)}
        if not step:
            return
        yield step
