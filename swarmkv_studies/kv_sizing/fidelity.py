"""Fidelity: how much a smaller KV type changes the model's predictions."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.model import Model
from swarmkv_lab.progress import tqdm
from swarmkv_lab.sizing.geometry import KV_TYPES, KVType
from swarmkv_studies.common.divergence import divergence


def kv_type_fidelity(
    model: Model, tokens: np.ndarray, kv_types: Sequence[KVType] = KV_TYPES, continuation: int = 32
) -> pd.DataFrame:
    """Snapshot bytes and KL to f16, a row per KV type, over the last ``continuation`` tokens of a document.

    Columns kv_type, snapshot_bytes, kl_mean, kl_max (nats, from f16 to the type), top1 (share of tokens with the same
    arg-max) and tokens (of how many). Flash attention is on for every type, because most need it. The row "f16, without
    flash attention" is the noise floor: the same cache, other kernels. Raises SwarmKVError for a continuation that is
    too long.
    """
    if not 0 < continuation < len(tokens):
        raise SwarmKVError(f"continuation={continuation}: it must be from 1 to {len(tokens) - 1}")
    floor = "f16, without flash attention"
    settings = {floor: ("f16", False)} | {str(kv_type): (kv_type, True) for kv_type in kv_types}

    def logits(kv_type: KVType, flash_attn: bool) -> list[np.ndarray]:
        with model.context(len(tokens), kv_type=kv_type, flash_attn=flash_attn) as ctx:
            ctx.decode(tokens[:-continuation])
            return predictions(ctx, tokens[-continuation:])

    reference = logits("f16", True)
    rows = []
    for name, (kv_type, flash_attn) in tqdm(settings.items(), desc="KV types", unit="type", leave=False):
        changed = divergence(reference, logits(kv_type, flash_attn))
        n_bytes = model.geometry.snapshot_bytes(len(tokens), kv_type)
        rows.append({"kv_type": name, "snapshot_bytes": n_bytes, **changed, "tokens": continuation})
    return pd.DataFrame(rows)


def predictions(ctx: Context, tokens: np.ndarray) -> list[np.ndarray]:
    """The logits after each token, float32 (n_vocab,); the tokens are decoded one by one, as in generation."""
    rows = []
    for token in tokens:
        ctx.decode([token])
        rows.append(ctx.logits())
    return rows
