"""Forks: the bytes of n answers that branch from one state, sharing its cells and with a copy each."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.llama.context import Context
from swarmkv_lab.sizing.geometry import KVGeometry, KVType

_TAG = 4
"""bytes of a sequence's number, which a cell has for each sequence that it belongs to"""


def shared_bytes(geometry: KVGeometry, n: int, n_prefix: int, n_tokens: int, kv_type: KVType = "f16") -> int:
    """Bytes of the cells of n forks of n_prefix tokens that grew by n_tokens each (predicted).

    The prefix's cells are there once, with one more number for each fork that they belong to.
    Raises SwarmKVError for a model with sliding windows, whose windowed layers drop cells as the forks grow.
    """
    if geometry.window:
        raise SwarmKVError("with sliding windows the shared cells change as forks grow: measure, with fork_bytes")
    return geometry.snapshot_bytes(n_prefix + n * n_tokens, kv_type) + _TAG * n * n_prefix


def fork_bytes(ctx: Context, counts: Sequence[int], n_tokens: int, seq_id: int = 0) -> pd.DataFrame:
    """Fork a sequence, let each fork grow by n_tokens, and count the bytes: a row per number of forks in ``counts``.

    Columns n; shared, the bytes of all cells in the context (measured); shared_predicted; copied, those of n copies
    (n times the measured bytes of one fork); copied_predicted. The sequence is as before in the end. Raises
    SwarmKVError when too few sequences are free, when the context is too small for the forks, and as ``shared_bytes``.
    """
    whole_number("n_tokens", n_tokens, 1)
    geometry, kv_type = ctx.model.geometry, ctx.settings.kv_pair
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
                    "shared_predicted": shared_bytes(geometry, n, n_prefix, n_tokens, kv_type),
                    "copied": n * ctx.state_bytes(forks[0]),
                    "copied_predicted": n * geometry.snapshot_bytes(n_prefix + n_tokens, kv_type),
                }
            )
    return pd.DataFrame(rows)
