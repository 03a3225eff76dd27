"""Forks: the bytes of n answers that branch from one state, sharing its cells and with a copy each."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.llama.context import Context

_TAG = 4
"""bytes of a sequence's number, which a cell has for each sequence that it belongs to"""


def fork_bytes(ctx: Context, counts: Sequence[int], n_tokens: int, seq_id: int = 0) -> pd.DataFrame:
    """Fork a sequence, let each fork grow by n_tokens, and count the bytes: a row per number of forks in ``counts``.

    Columns n; shared, the bytes of all cells in the context (measured); shared_predicted: the prefix's cells are there
    once, with one more number for each fork; copied, the bytes of n copies (n times the measured ones of one fork);
    copied_predicted. The sequence is as before in the end. Raises SwarmKVError when too few sequences are free, when
    the context is too small, and for sliding windows, whose layers drop cells as the forks grow.
    """
    whole_number("n_tokens", n_tokens, 1)
    geometry, kv_type = ctx.model.geometry, ctx.settings.kv_pair
    if geometry.window:
        raise SwarmKVError(f"sliding windows of {geometry.window:,} tokens drop shared cells as forks grow: no formula")
    n_prefix = ctx.n_past(seq_id)
    grown = np.full(n_tokens, ctx.model.n_vocab - 1, np.int32)  # which token it is makes no difference to the bytes
    # what a context's state holds beside its one sequence
    around = ctx.state_bytes(None) - ctx.state_bytes(seq_id)
    rows = []
    for n in counts:
        with ctx.fork(n, seq_id) as forks:
            for fork in forks:
                ctx.decode(grown, fork)
            rows.append(
                {
                    "n": n,
                    "shared": ctx.state_bytes(None) - around,
                    "shared_predicted": geometry.snapshot_bytes(n_prefix + n * n_tokens, kv_type) + _TAG * n * n_prefix,
                    "copied": n * ctx.state_bytes(forks[0]),
                    "copied_predicted": n * geometry.snapshot_bytes(n_prefix + n_tokens, kv_type),
                }
            )
    return pd.DataFrame(rows)
