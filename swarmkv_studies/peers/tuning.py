"""Tuning: measure once which settings are fastest on this machine, to use them for every strategy."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.llama.api import default_threads
from swarmkv_lab.llama.model import Model
from swarmkv_lab.progress import tqdm
from swarmkv_studies.common.work_times import BRANCH, STEPS, time_work


def tune(
    model: Model,
    tokens: np.ndarray,
    *,
    n_threads: Sequence[int] | None = None,
    flash_attn: Sequence[bool] = (False, True),
    repeats: int = 3,
    **settings: Any,
) -> pd.DataFrame:
    """Time a prefill of ``tokens``, a branch and single tokens after it, in turns: medians, a row per combination.

    Columns flash_attn, n_threads, prefill_ms, branch_ms (12 tokens), token_ms (per token). n_threads: by default
    1, 2, 4 ... up to the physical cores. flash_attn="auto" does not tune: it must always give the same setting, because
    a snapshot can only be restored with the setting that it was captured with.
    """
    most = default_threads()
    n_threads = n_threads or sorted({*(1 << i for i in range(most.bit_length())), most})
    times: dict[tuple[bool, int], list[np.ndarray]] = {}
    turns = list(product(range(repeats + 1), flash_attn, n_threads))
    for repeat, flash, threads in tqdm(turns, desc="tuning", unit="run", leave=False):
        how = settings | {"flash_attn": flash, "n_threads": threads}
        with model.context(len(tokens) + BRANCH + STEPS, **how) as ctx:
            ms = time_work(ctx, tokens)
        if repeat:  # the first round is a warm-up
            times.setdefault((flash, threads), []).append(ms)
    rows = [(*key, *np.median(each, axis=0)) for key, each in times.items()]
    return pd.DataFrame(rows, columns=["flash_attn", "n_threads", "prefill_ms", "branch_ms", "token_ms"])


def fastest_settings(frame: pd.DataFrame, n_agents: int = 4, n_tokens: int = 16) -> dict[str, Any]:
    """The settings that are fastest for one prefill and n_agents answers of n_tokens; frame: from ``tune``."""
    work = frame.prefill_ms + n_agents * frame.branch_ms
    flash_attn = frame.flash_attn[(work + n_agents * n_tokens * frame.token_ms).idxmin()]
    alike = frame[frame.flash_attn == flash_attn]
    return {
        "flash_attn": str(flash_attn) == "True",  # text in a frame from a file
        "n_threads": int(alike.n_threads[alike.token_ms.idxmin()]),
        "n_threads_batch": int(alike.n_threads[work[alike.index].idxmin()]),
    }
