"""Spinning: what it costs that a decode's threads wait awake for each other, on a quiet machine and on a busy one."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.loading import load_model
from swarmkv_lab.progress import tqdm
from swarmkv_lab.threads import SPIN, WAIT_VARIABLES

# How threads wait: a process reads its environment once, when OpenMP's library is loaded. 300,000 is libgomp's own.
WAITING: Mapping[str, Mapping[str, str]] = {
    "libgomp's default": {"GOMP_SPINCOUNT": "300000"},
    "the lab's": SPIN,
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": SPIN,
}
PROMPT, SINGLE = 512, 24
"""tokens of the work that is timed: one batch, and then so many one by one"""


def compare_spinning(model_path: str | Path, busy: Sequence[int] = (0, 2, 10), *, repeats: int = 5) -> pd.DataFrame:
    """One batch of 512 tokens and 24 single ones beside so many busy processes: a row per way to wait, and round.

    Columns: busy, repeat, waiting, prompt_ms, single_ms (per token), measured in turns within a round, each way in a
    process of its own that was warmed up.
    """
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(model_path, name, how)) for name, how in WAITING.items()}
        bar = stack.enter_context(tqdm(total=len(busy) * repeats * len(WAITING), desc="spinning", leave=False))
        for n_busy in busy:
            with _busy(n_busy):
                for repeat, (name, worker) in product(range(repeats), workers.items()):
                    rows.append({"busy": n_busy, "repeat": repeat, "waiting": name, **_ask(worker)})
                    bar.update()
    return pd.DataFrame(rows)


@contextmanager
def _worker(path: str | Path, name: str, how: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    plain = {key: value for key, value in os.environ.items() if key not in WAIT_VARIABLES}
    command = [sys.executable, "-m", __name__, str(path), "1" if name == "one thread" else "0"]
    pipe = subprocess.PIPE
    worker = subprocess.Popen(command, env={**plain, **how}, stdin=pipe, stdout=pipe, text=True)
    try:
        _ask(worker)  # the warm-up
        yield worker
    finally:
        worker.kill()
        worker.communicate()


def _ask(worker: subprocess.Popen[str]) -> dict[str, float]:
    pipes: Any = worker
    print(file=pipes.stdin, flush=True)
    if not (line := pipes.stdout.readline()):
        raise SwarmKVError(f"a process that measures ended with status {worker.wait()}")
    return dict(json.loads(line))


@contextmanager
def _busy(n: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        time.sleep(0.5 if n else 0)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _serve(path: str, n_threads: int) -> None:
    with load_model(path) as model, model.context(n_ctx=1024, n_threads=n_threads or None) as ctx:
        tokens = np.random.default_rng(7).integers(0, model.n_vocab, PROMPT + SINGLE, dtype=np.int32)
        for _ in sys.stdin:
            ctx.clear()
            start = time.perf_counter()
            ctx.decode(tokens[:PROMPT])
            middle = time.perf_counter()
            for token in tokens[PROMPT:]:
                ctx.decode([token])
            ms = {"prompt_ms": 1e3 * (middle - start), "single_ms": 1e3 * (time.perf_counter() - middle) / SINGLE}
            print(json.dumps(ms), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
