"""Weight formats: how fast a model is in each of them, and how far each changes its predictions."""

import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.loading import load_model, model_path
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.requantize import check_format, file_format, requantized
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.progress import tqdm
from swarmkv_studies.common.divergence import divergence
from swarmkv_studies.common.work_times import BRANCH, STEPS, opened, time_work
from swarmkv_studies.kv_sizing.fidelity import predictions
from swarmkv_studies.peers.work import decode_work

COMMON_FORMATS = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")
"""The formats that people publish models in."""


def in_formats(source: str | Path | Model | None, formats: Iterable[str], *, progress: bool = True) -> dict[str, Path]:
    """A model's file by its own format ("unknown" if its metadata names none), and then the same weights in others.

    Those that cannot be made are left out, with a warning. Raises SwarmKVError for a name that is no format.
    """
    formats = list(formats)
    for weights in formats:
        check_format(weights)
    if isinstance(source, Model):
        source.require_unchanged()
    path = source.path if isinstance(source, Model) else model_path(source)
    paths = {file_format(path) or "unknown": path}
    for weights in formats:
        if weights not in paths:
            try:
                paths[weights] = requantized(path, weights, progress=progress)
            except SwarmKVError as error:
                warnings.warn(f"{weights} is left out: {error}", stacklevel=2)
    return paths


def weight_formats(
    model: Model | str | Path | None,
    tokens: np.ndarray,
    formats: Sequence[str] = COMMON_FORMATS,
    *,
    repeats: int = 3,
    continuation: int = 32,
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """Time a model in several weight formats, and compare its predictions: a row per format, the model's own first.

    model: a Model, or what load_model takes. settings: as in Context, n_ctx aside. Columns:
    format; is_source; file_bytes; n_tokens, those of the prefill; repeats, the rounds that were measured; prefill_ms
    (median), prefill_min_ms, prefill_max_ms; branch_ms, of 12 tokens after it; token_ms, per single token after those;
    prefill_tokens_per_s; kl_mean, kl_max (nats, from the source) and top1 over the last ``continuation`` tokens; and
    {prefill, branch, token}_flop and _bytes, as in sizing.work.decode_work, where sizing knows the architecture.

    The formats take turns (A B C, A B C) after a warm-up. One at a time is in memory beside the source, loaded anew in
    each turn and not timed until it is: repacked weights are private memory, and all formats at once may not fit.
    A format that cannot be made is left out, with a warning. Raises SwarmKVError for unknown formats or settings and
    for a continuation that is too long.
    """
    whole_number("repeats", repeats, 1)
    how = ContextSettings.of(**settings).sized(len(tokens) + BRANCH + STEPS)
    with ExitStack() as stack:
        source = model if isinstance(model, Model) else stack.enter_context(load_model(model))
        tokens = source.check_tokens(tokens)
        if not 0 < continuation < len(tokens):
            raise SwarmKVError(f"continuation={continuation}: it must be from 1 to {len(tokens) - 1}")
        paths = in_formats(source, formats, progress=progress)
        bar = stack.enter_context(tqdm(total=(repeats + 1) * len(paths), desc="formats", disable=not progress))
        rounds: list[dict[str, Any]] = [{} for _ in range(repeats + 1)]
        for (repeat, this), (name, path) in product(enumerate(rounds), paths.items()):
            bar.set_postfix_str(name)
            with opened(path, source) as one, one.open_context(how) as ctx:
                this[name] = time_work(ctx, tokens) if repeat else _continue(ctx, tokens, continuation)
            bar.update()
        return pd.DataFrame([_row(name, path, source, rounds, len(tokens), how) for name, path in paths.items()])


def _continue(ctx: Context, tokens: np.ndarray, n: int) -> list[np.ndarray]:
    """The predictions over the last n tokens, which are the warm-up too."""
    ctx.decode(tokens[:-n])
    return predictions(ctx, tokens[-n:])


def _row(
    name: str, path: Path, source: Model, rounds: list[dict[str, Any]], n_tokens: int, how: ContextSettings
) -> dict[str, Any]:
    logits = rounds[0]
    times = np.array([this[name] for this in rounds[1:]])
    prefill, branch, token = np.median(times, axis=0)
    row = {
        "format": name,
        "is_source": path == source.path,
        "file_bytes": path.stat().st_size,
        "n_tokens": n_tokens,
        "repeats": len(times),
        "prefill_ms": prefill,
        "prefill_min_ms": times[:, 0].min(),
        "prefill_max_ms": times[:, 0].max(),
        "branch_ms": branch,
        "token_ms": token,
        "prefill_tokens_per_s": 1e3 * n_tokens / prefill,
        **divergence(next(iter(logits.values())), logits[name]),
    }
    n_branch = min(BRANCH, n_tokens)
    decodes = {"prefill": (n_tokens, 0), "branch": (n_branch, n_tokens), "token": (1, n_tokens + n_branch)}
    for work, (n, n_past) in decodes.items() if source.sized else ():
        row[f"{work}_flop"], row[f"{work}_bytes"] = decode_work(path, n, n_past, how.kv_pair)
    return row
