"""Weight formats: how fast a model is in each of them, and how far each changes its predictions."""

import timeit
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.loading import load_model, model_path
from swarmkv_lab.llama.requantize import file_format, requantized
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.progress import tqdm
from swarmkv_studies.common.divergence import divergence
from swarmkv_studies.kv_sizing.fidelity import predictions

FORMATS = ("f16", "bf16", "q8_0", "q4_0", "iq4_nl")
BRANCH, STEPS = 12, 8
"""tokens of a question, and single tokens after it"""


def weight_formats(
    source: str | Path | None,
    tokens: np.ndarray,
    formats: Sequence[str] = FORMATS,
    *,
    repeats: int = 3,
    continuation: int = 32,
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """Time a model in several weight formats, and compare its predictions: a row per format, the model's own first.

    source: what load_model takes; the others are made of it. settings: as in Context, n_ctx aside. Columns: format
    ("unknown" where the file names none); file_bytes; n_tokens, those of the prefill; repeats; medians prefill_ms,
    branch_ms (12 tokens after it) and token_ms (per single token after those); kl_mean, kl_max (nats, from the source)
    and top1 over the last ``continuation`` tokens. The formats take turns (A B C, A B C), one at a time in memory.
    Raises SwarmKVError for unknown formats or settings, formats that cannot be made, and too long a continuation.
    """
    whole_number("repeats", repeats, 1)
    if not 0 < continuation < len(tokens):
        raise SwarmKVError(f"continuation={continuation}: it must be from 1 to {len(tokens) - 1}")
    how, path = ContextSettings.of(**settings).sized(len(tokens) + BRANCH + STEPS), model_path(source)
    own = file_format(path) or "unknown"
    paths = {own: path} | {name: requantized(path, name, progress=progress) for name in formats if name != own}
    logits: dict[str, list[np.ndarray]] = {}
    times: dict[str, list[np.ndarray]] = {name: [] for name in paths}
    turns = list(product(range(repeats + 1), paths.items()))
    for repeat, (name, file) in tqdm(turns, desc="formats", disable=not progress):
        with load_model(file) as model, model.open_context(how) as ctx:
            if repeat:
                times[name].append(_times(ctx, tokens))
            else:  # the predictions are the warm-up
                ctx.decode(tokens[:-continuation])
                logits[name] = predictions(ctx, tokens[-continuation:])
    rows = []
    for name, file in paths.items():
        ms = np.median(times[name], axis=0)
        about = {"format": name, "file_bytes": file.stat().st_size, "n_tokens": len(tokens), "repeats": repeats}
        about |= dict(zip(("prefill_ms", "branch_ms", "token_ms"), ms, strict=True))
        rows.append(about | divergence(logits[own], logits[name]))
    return pd.DataFrame(rows)


def _times(ctx: Context, tokens: np.ndarray) -> np.ndarray:
    """ms of a prefill, of a question of BRANCH tokens, and of each of STEPS single tokens: float (3,)."""
    ctx.decode(tokens[:1])  # the weights are in memory now, and no decode that is timed waits for them
    ctx.clear()

    def one_by_one() -> None:
        for token in tokens[:STEPS]:
            ctx.decode([token])

    work = (lambda: ctx.decode(tokens), lambda: ctx.decode(tokens[:BRANCH]), one_by_one)
    return 1e3 * np.array([timeit.timeit(each, number=1) for each in work]) / [1, 1, STEPS]
