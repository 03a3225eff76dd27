"""Generation: sequences that grow by one token a step, all of them in one decode."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from swarmkv_lab.llama.context import Context


def generate_together(
    ctx: "Context", asked: Mapping[int, tuple[int, Sampling]], stopped: Callable[[int], bool] = lambda seq_id: False
) -> Iterator[dict[int, int]]:
    """``Context.stream`` for several sequences in step: yields {seq_id: token} of those that have not finished.

    asked: {seq_id: (max_tokens, sampling)}; every sequence has a sampler of its own. stopped: asked before each further
    token of a sequence, whether nobody wants it any more.
    """
    for max_tokens, _ in asked.values():
        if max_tokens < 0:
            raise SwarmKVError(f"max_tokens={max_tokens}: it must be at least 0")
    return _steps(ctx, asked, stopped)


def _steps(
    ctx: "Context", asked: Mapping[int, tuple[int, Sampling]], stopped: Callable[[int], bool]
) -> Iterator[dict[int, int]]:
    samplers = {seq_id: Sampler(sampling) for seq_id, (_, sampling) in asked.items()}
    step = dict.fromkeys(asked, -1)
    for i in range(max(max_tokens for max_tokens, _ in asked.values())):
        live = {seq_id: token for seq_id, token in step.items() if i < asked[seq_id][0] and not stopped(seq_id)}
        if not live:
            return
        with ctx.guard:
            if i:
                ctx.decode_many({seq_id: [token] for seq_id, token in live.items()})
            step = {seq_id: samplers[seq_id].sample(ctx.spend_logits(seq_id)) for seq_id in live}
        step = {seq_id: token for seq_id, token in step.items() if not ctx.model.is_eog(token)}
        if not step:
            return
        yield step
