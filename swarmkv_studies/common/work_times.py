"""What a setting or a weight format is timed at: a prefill, a question after it, and single tokens after that."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from swarmkv_lab.fanout.recorder import Recorder
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.model import Model
from swarmkv_lab.snapshot.prefill import prefill_into
from swarmkv_studies.common.clock import in_beats

BRANCH = 12
"""tokens of a question"""
STEPS = 8
"""single tokens"""
Beat = Callable[[], float]
Times = tuple[np.ndarray, np.ndarray]
"""(ms, beats) of the prefill, the question and each single token: float (3,) each."""


def time_work(ctx: Context, tokens: np.ndarray, beat: Beat, beat_after: Beat | None = None) -> Times:
    """Prefill tokens, decode a question of BRANCH tokens, then STEPS tokens one by one.

    beat: as in Recorder. beat_after: of what follows the prefill, where its attention is another one.
    """
    steps = tokens[:STEPS]

    def one_by_one() -> None:
        for token in steps:
            ctx.decode([token])

    beat_after = beat_after or beat
    prefill = _timed(ctx, lambda: prefill_into(ctx, tokens), beat)
    branch = _timed(ctx, lambda: ctx.decode(tokens[:BRANCH]), beat_after)
    ms, beats = np.array([prefill, branch, _timed(ctx, one_by_one, beat_after)]).T
    each = np.array([1, 1, len(steps)])
    return ms / each, beats / each


def _timed(ctx: Context, decode: Callable[[], object], beat: Beat) -> tuple[float, float]:
    """The ms and the beats of a piece of work."""
    record = Recorder(beat)
    ctx.callback = record.tick
    record.tick(0)
    start = record.now()
    decode()
    moments = np.array([start, record.now()])
    record.tick(0)
    return float(np.diff(moments)[0]), float(np.diff(in_beats(moments, record.beats))[0])


def median_beat(times: Sequence[Times]) -> float:
    """The ms of a beat at these measurements' median speed: beats times it are corrected ms (analysis.clock)."""
    return float(np.median([ms.sum() / beats.sum() for ms, beats in times]))


@contextmanager
def opened(path: Path, like: Model) -> Iterator[Model]:
    """The model of a GGUF, on ``like``'s device; its weights are in memory already, so that no decode waits for them.

    Where it is like's own file, it is ``like``.
    """
    if path == like.path:
        yield like
        return
    with Model(path, n_gpu_layers=-1 if like.on_gpu else 0) as model:
        with model.context(1) as ctx:
            ctx.decode([0])
        yield model
