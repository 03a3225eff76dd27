"""Tuning: measure once which settings are fastest on this machine, to use them for every strategy."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.api import default_threads
from swarmkv_lab.llama.model import Model
from swarmkv_lab.progress import tqdm
from swarmkv_studies.common.work_times import BRANCH, STEPS, opened, time_work
from swarmkv_studies.peers.formats import in_formats


def tune(
    model: Model,
    tokens: np.ndarray,
    *,
    n_threads: Sequence[int] | None = None,
    flash_attn: Sequence[bool] = (False, True),
    weights: Sequence[str] | None = None,
    repeats: int = 3,
    **settings: Any,
) -> pd.DataFrame:
    """Time a prefill of ``tokens``, a branch and single tokens after it, in turns: medians, a row per combination.

    Columns flash_attn, n_threads, prefill_ms, branch_ms (12 tokens), token_ms (per token). n_threads: by default
    1, 2, 4 ... up to the physical cores. weights: formats to time beside the model's own, in a first column weights;
    see weight_formats for how far they change its predictions. flash_attn="auto" does not tune: it must always give the
    same setting, because a snapshot can only be restored with the setting that it was captured with.
    """
    most = default_threads()
    n_threads = n_threads or sorted({*(1 << i for i in range(most.bit_length())), most})
    paths = {"": model.path} if weights is None else in_formats(model, weights)
    times: dict[tuple[str, bool, int], list[np.ndarray]] = {}
    turns = list(product(flash_attn, n_threads))
    with tqdm(total=(repeats + 1) * len(paths) * len(turns), desc="tuning", unit="run", leave=False) as bar:
        for repeat, name in product(range(repeats + 1), paths):
            with opened(paths[name], model) as one:
                for flash, threads in turns:
                    how = settings | {"flash_attn": flash, "n_threads": threads}
                    with one.context(len(tokens) + BRANCH + STEPS, **how) as ctx:
                        ms = time_work(ctx, tokens)
                    if repeat:  # the first round is a warm-up
                        times.setdefault((name, flash, threads), []).append(ms)
                    bar.update()
    rows = [(*key, *np.median(each, axis=0)) for key, each in times.items()]
    columns = ["weights", "flash_attn", "n_threads", "prefill_ms", "branch_ms", "token_ms"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.drop(columns="weights") if weights is None else frame


def fastest_settings(frame: pd.DataFrame, n_agents: int = 4, n_tokens: int = 16) -> dict[str, Any]:
    """The settings that are fastest for one prefill and n_agents answers of n_tokens; frame: from ``tune``.

    If it timed several weight formats, the settings are those of fastest_weights.
    """
    if "weights" in frame:
        frame = frame[frame.weights == fastest_weights(frame, n_agents, n_tokens)]
    work = frame.prefill_ms + n_agents * frame.branch_ms
    flash_attn = frame.flash_attn[_end_to_end_ms(frame, n_agents, n_tokens).idxmin()]
    alike = frame[frame.flash_attn == flash_attn]
    return {
        "flash_attn": str(flash_attn) == "True",  # text in a frame from a file
        "n_threads": int(alike.n_threads[alike.token_ms.idxmin()]),
        "n_threads_batch": int(alike.n_threads[work[alike.index].idxmin()]),
    }


def fastest_weights(frame: pd.DataFrame, n_agents: int = 4, n_tokens: int = 16) -> str:
    """The weight format that is fastest for this; frame: from ``tune`` with weights, or SwarmKVError."""
    if "weights" not in frame:
        raise SwarmKVError("this frame has times of one weight format: pass weights=[...] to tune")
    return str(frame.weights[_end_to_end_ms(frame, n_agents, n_tokens).idxmin()])


def _end_to_end_ms(frame: pd.DataFrame, n_agents: int, n_tokens: int) -> pd.Series:
    return frame.prefill_ms + n_agents * (frame.branch_ms + n_tokens * frame.token_ms)
