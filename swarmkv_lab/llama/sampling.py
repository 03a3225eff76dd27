"""Sampling: how the next token is chosen, and sequences that grow by one each, all of them in one decode."""

import ctypes
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.llama.api import pointer

if TYPE_CHECKING:
    from swarmkv_lab.llama.context import Context

_COLDEST, _HOTTEST = 1e-4, 1e4  # logits are divided by it in float32: far outside, the draw is no longer a draw
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


@dataclass(frozen=True)
class Sampling:
    """Greedy at ``temperature`` 0 (the default); otherwise top-k, top-p, min-p, temperature and a draw, in that order.

    A filter is off at top_k=0, top_p=1, min_p=0. The same seed, logits and settings give the same tokens.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        whole_number("top_k", self.top_k)
        whole_number("seed", self.seed, 0, 2**32 - 2)
        rules: dict[str, tuple[Callable[[Any], bool], str]] = {
            "temperature": (lambda t: t == 0 or _COLDEST <= t <= _HOTTEST, f"0, or from {_COLDEST} to {_HOTTEST:,.0f}"),
            "top_p": (lambda p: 0 < p <= 1, "above 0 and at most 1 (1: off)"),
            "min_p": (lambda p: 0 <= p <= 1, "from 0 (off) to 1"),
        }
        for name, (holds, rule) in rules.items():
            value = getattr(self, name)
            is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
            if not is_number or not holds(value):
                raise SwarmKVError(f"{name}={value!r}: it must be {rule}")


GREEDY = Sampling()


class Sampler:
    """Draws one agent's tokens: greedy, or a chain with a random state of its own, so every agent gets its own."""

    def __init__(self, sampling: Sampling = GREEDY) -> None:
        self._chain = None
        if sampling.temperature == 0:
            return
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        weakref.finalize(self, llama_cpp.llama_sampler_free, self._chain)
        links = [
            llama_cpp.llama_sampler_init_top_k(sampling.top_k),
            llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
            llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1),
            llama_cpp.llama_sampler_init_temp(sampling.temperature),
            llama_cpp.llama_sampler_init_dist(sampling.seed),
        ]
        for link in links:
            llama_cpp.llama_sampler_chain_add(self._chain, link)  # the chain owns and frees it

    def sample(self, logits: np.ndarray) -> int:
        """The next token id for one row of logits, float32 (n_vocab,)."""
        best = int(logits.argmax())  # where one is not a number, that one
        if not np.isfinite(logits[best]):
            raise SwarmKVError(f"a logit is {logits[best]}: the model's weights or its KV cache are damaged")
        return best if self._chain is None else self._draw(logits)

    def _draw(self, logits: np.ndarray) -> int:
        candidates = np.zeros(len(logits), _TOKEN_DATA)
        candidates["id"], candidates["logit"] = np.arange(len(logits)), logits
        first = pointer(candidates, llama_cpp.llama_token_data)
        array = llama_cpp.llama_token_data_array(first, len(logits), -1, False)
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            raise SwarmKVError("llama.cpp's sampler chain selected no token")
        token = int(array.data[array.selected].id)
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of the tokens' probabilities, float64 (n_vocab,)."""
    x = np.float64(logits) - np.max(logits)
    return np.asarray(x - np.log(np.exp(x).sum()))


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

    def gone(seq_id: int, error: SwarmKVError) -> None:
        if failed is None:
            raise error
        failed(seq_id, error)

    def steps() -> Iterator[dict[int, int]]:
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

    return steps()


def decode_together(
    ctx: "Context",
    tokens_by_seq: Mapping[int, Sequence[int] | np.ndarray],
    failed: Failed | None = None,
    starts: Mapping[int, int] = {},
) -> list[int]:
    """``Context.decode_many``, and the sequences that it succeeded for.

    With ``failed``, what cannot be decoded together is decoded one by one, which is warned of, and it is told of each
    sequence that cannot be decoded by itself either.
    """
    if not tokens_by_seq:
        return []
    past = {seq_id: ctx.n_past(seq_id) for seq_id in tokens_by_seq}
    try:
        ctx.decode_many(tokens_by_seq, starts={i: at for i, at in starts.items() if i in tokens_by_seq})
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
            done += decode_together(ctx, {seq_id: tokens}, failed, starts)
        else:
            failed(seq_id, together)
    return done
