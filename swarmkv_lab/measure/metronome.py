"""Metronome: a fixed piece of llama.cpp's work, timed whenever it is asked: how fast the machine is just now."""

import time
from types import TracebackType

import numpy as np

from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings

BEAT_TOKENS = 16
"""tokens that a beat decodes, in one llama_decode"""


class Metronome:
    """Call it for the ms of a beat: the shorter of two decodes of BEAT_TOKENS tokens in a small context of its own.

    The same model and the same threads as the work that it accompanies. Used in a ``with`` block, which frees it.
    """

    def __init__(self, model: Model, settings: ContextSettings = ContextSettings()) -> None:  # noqa: B008 it is frozen
        how = {"n_threads": settings.threads, "n_threads_batch": settings.threads_batch}
        self._ctx = model.context(BEAT_TOKENS, **how)
        self._tokens = np.random.default_rng(0).integers(0, model.n_vocab, BEAT_TOKENS, dtype=np.int32)

    def __call__(self) -> float:
        """The ms of a beat."""
        return 1e3 * min(self._once() for _ in range(2))

    def _once(self) -> float:
        self._ctx.clear()
        start = time.perf_counter()
        self._ctx.decode(self._tokens)
        return time.perf_counter() - start

    def __enter__(self) -> "Metronome":
        self()  # a warm-up
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._ctx.close()
