"""Metronome: a fixed piece of llama.cpp's work, timed whenever it is asked: how fast the machine is just now."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import numpy as np

from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings

BEAT_TOKENS = 16
"""tokens that a beat decodes, in one llama_decode"""
SHARE = 5
"""a beat attends to this part of the document: a fifth

A prefill attends to half of it on average. But where other programs fill the processor's cache, the attention of a few
tokens slows down more than that of 512: after half of it, a beat slowed down more than the prefill did. How well a
fifth follows is in data/reference/clock.csv, measured on a machine that changed between two speeds.
"""
_PAST, _BEAT = 0, 1  # sequences of its context


class Metronome:
    """Call it for the ms of a beat: the shorter of two decodes of BEAT_TOKENS tokens in a small context of its own.

    The same model and threads as the work that it accompanies, the prefill of a document of ``depth`` tokens. A machine
    slows down attention, which reads the cache, and products with weights by different factors, so a beat must have as
    much of both: it attends to one of SHARE parts of the document, by the prefill's own kernel. Used in a ``with``
    block, which frees it.
    """

    def __init__(self, model: Model, depth: int, settings: ContextSettings = ContextSettings()) -> None:  # noqa: B008
        how: dict[str, Any] = {
            "n_threads": settings.threads,
            "n_threads_batch": settings.threads_batch,
            "flash_attn": settings.flash_attn,
        }
        tokens = np.random.default_rng(0).integers(0, model.n_vocab, depth // SHARE + BEAT_TOKENS, dtype=np.int32)
        past, self._tokens = tokens[:-BEAT_TOKENS], tokens[-BEAT_TOKENS:]
        self._ctx = model.context(len(tokens), n_seq_max=2, **how)
        self._past = len(past)
        if self._past:
            self._ctx.decode(past, _PAST)

    def __call__(self) -> float:
        """The ms of a beat."""
        return 1e3 * min(self._once() for _ in range(2))

    def _once(self) -> float:
        if self._past:
            self._ctx.share(_PAST, _BEAT)
        start = time.perf_counter()
        self._ctx.decode(self._tokens, _BEAT)
        seconds = time.perf_counter() - start
        self._ctx.clear(_BEAT)
        return seconds

    def __enter__(self) -> "Metronome":
        self()  # a warm-up
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._ctx.close()


def metronome(
    model: Model,
    depth: int,
    settings: ContextSettings = ContextSettings(),  # noqa: B008 it is frozen
) -> AbstractContextManager[Callable[[], float]]:
    """A Metronome, for a ``with`` block. On a GPU its beat is 1 ms: times in beats are then the times as measured.

    There llama_decode returns before the work is done. A beat between two decodes would wait for the first of them, off
    the clock of the run that it belongs to.
    """
    return nullcontext(lambda: 1.0) if model.on_gpu else Metronome(model, depth, settings)
