"""How the next token is chosen: the likeliest, or llama.cpp's own sampler chain over one row of logits."""

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.llama.api import pointer

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
        candidates["id"] = np.arange(len(logits), dtype=np.int32)
        candidates["logit"] = logits
        array = llama_cpp.llama_token_data_array(
            pointer(candidates, llama_cpp.llama_token_data), len(candidates), -1, False
        )
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            raise SwarmKVError("llama.cpp's sampler chain selected no token")
        token = int(array.data[array.selected].id)
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token
