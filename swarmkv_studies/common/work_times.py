"""What a setting or a weight format is timed at: a prefill, a question after it, and single tokens after that."""

import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.model import Model

BRANCH = 12
"""tokens of a question"""
STEPS = 8
"""single tokens"""


def time_work(ctx: Context, tokens: np.ndarray) -> np.ndarray:
    """Prefill tokens, decode a question of BRANCH tokens, then STEPS tokens one by one.

    Returns the ms of the prefill, of the question and of each single token: float (3,).
    """
    steps = tokens[:STEPS]

    def one_by_one() -> None:
        for token in steps:
            ctx.decode([token])

    work = (lambda: ctx.decode(tokens), lambda: ctx.decode(tokens[:BRANCH]), one_by_one)
    return 1e3 * np.array([timeit.timeit(each, number=1) for each in work]) / [1, 1, len(steps)]


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
