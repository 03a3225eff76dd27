"""Across devices: a document read on a GPU, and gone on from on the processor, or the other way round."""

from contextlib import ExitStack
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from swarmkv_lab.fanout.outcome import kl_divergence
from swarmkv_lab.llama.model import Model
from swarmkv_lab.snapshot.snapshot import KVSnapshot

_LAYERS = {"GPU": -1, "CPU": 0}


def across_devices(path: str | Path, tokens: np.ndarray, prompt: np.ndarray) -> pd.DataFrame:
    """Prefill on each device, and decode a branch after each snapshot on each: a row per pair.

    Columns tokens, prefill_on and branch_on (GPU, CPU); max_abs_logit_diff, kl (nats) and same_top compare the branch's
    last logits with those of the pair GPU, GPU. Flash attention is on everywhere: both devices lay a state out alike.
    On a build without a GPU, both are the CPU. Raises SwarmKVError as Model and Context.
    """
    with ExitStack() as stack:
        contexts, snapshots = {}, {}
        for place, n_gpu_layers in _LAYERS.items():
            model = stack.enter_context(Model(path, n_gpu_layers=n_gpu_layers))
            ctx = stack.enter_context(model.context(len(tokens) + len(prompt), flash_attn=True))
            ctx.decode(tokens)
            contexts[place], snapshots[place] = ctx, KVSnapshot.capture(ctx, tokens)
        logits = {}
        for prefill_on, branch_on in product(_LAYERS, _LAYERS):
            ctx = contexts[branch_on]
            snapshots[prefill_on].restore(ctx)
            ctx.decode(prompt)
            logits[prefill_on, branch_on] = ctx.logits()
    there = logits["GPU", "GPU"]
    return pd.DataFrame(
        {
            "tokens": len(tokens),
            "prefill_on": prefill_on,
            "branch_on": branch_on,
            "max_abs_logit_diff": float(np.abs(row - there).max()),
            "kl": kl_divergence(there, row),
            "same_top": bool(row.argmax() == there.argmax()),
        }
        for (prefill_on, branch_on), row in logits.items()
    )
