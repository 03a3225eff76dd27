"""What a setting or a weight format is timed at: a prefill, a question after it, and single tokens after that."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from swarmkv_lab.analysis.clock import in_beats
from swarmkv_lab.fanout.recorder import Recorder
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.model import Model
from swarmkv_lab.snapshot.prefill import prefill_into

BRANCH = 12
"""tokens of a question"""
STEPS = 8
"""single tokens"""
Times = tuple[np.ndarray, np.ndarray]
"""(ms, beats) of the prefill, the question and each single token: float (3,) each."""


def time_work(ctx: Context, tokens: np.ndarray, beat: Callable[[], float]) -> Times:
    """Prefill tokens, decode a question of BRANCH tokens, then STEPS tokens one by one; beat: as in Recorder."""
    record = Recorder(beat)
    ctx.callback = record.tick
    steps = tokens[:STEPS]

    def one_by_one() -> None:
        for token in steps:
            ctx.decode([token])

    for work, decode in {
        "prefill": lambda: prefill_into(ctx, tokens),
        "branch": lambda: ctx.decode(tokens[:BRANCH]),
        "token": one_by_one,
    }.items():
        record.tick(0)
        with record.phase(["work"], work):
            decode()
    record.tick(0)
    moments = np.array([(span.start_ms, span.end_ms) for span in record.spans])
    ms, beats = (np.diff(clock)[:, 0] for clock in (moments, in_beats(moments, record.beats)))
    each = np.array([1, 1, len(steps)])
    return ms / each, beats / each


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
