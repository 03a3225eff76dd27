"""Windows: how far the strategies are from naive where layers have a sliding window, beside naive's own noise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import whole_number
from swarmkv_lab.fanout.fan_out import Prompts, fan_out
from swarmkv_lab.llama.model import Model
from swarmkv_lab.progress import tqdm

FLOOR = "naive, with swa_full"


def window_difference(
    model: Model,
    tokens: np.ndarray,
    agents: Prompts,
    depths: Sequence[int] | None = None,
    strategies: Sequence[str] = ("swarmkv", "pooled", "shared"),
    **settings: Any,
) -> pd.DataFrame:
    """The strategies' first logits against naive's, without swa_full and with it: a row per depth, setting, strategy.

    depths: the first so many of the tokens are the document; None: all of them. settings: kv_type, flash_attn, n_batch,
    n_threads as in Context. Columns: depth, swa_full, strategy, and the largest over the agents of max_abs_logit_diff
    and kl (nats, from naive with the same swa_full). The row "naive, with swa_full" is the noise floor: naive with it
    against naive without, whose windowed layers add up the same numbers in another order once they have used a cell
    twice (before, it is 0). With swa_full the strategies' rows are 0, and without windows all are. Raises SwarmKVError
    for depths that there are no tokens for, and as fan_out.
    """
    document = model.check_tokens(tokens)
    asked = [len(document)] if depths is None else [whole_number("depth", n, 1, len(document)) for n in depths]
    rows = []
    for depth in tqdm(asked, desc="depths", unit="depth", leave=False):
        prefix = document[:depth]
        reference = fan_out(model, prefix, agents, "naive", max_tokens=0, swa_full=False, **settings)
        floor = fan_out(model, prefix, agents, "naive", max_tokens=0, swa_full=True, **settings)
        pairs = [(True, FLOOR, floor, reference)]
        for swa_full, naive in ((False, reference), (True, floor)):
            for name in strategies:
                run = fan_out(model, prefix, agents, name, max_tokens=0, swa_full=swa_full, **settings)
                pairs.append((swa_full, name, run, naive))
        for swa_full, name, run, naive in pairs:
            worst = run.compare(naive)[["max_abs_logit_diff", "kl"]].max()
            rows.append({"depth": depth, "swa_full": swa_full, "strategy": name, **worst})
    return pd.DataFrame(rows, columns=["depth", "swa_full", "strategy", "max_abs_logit_diff", "kl"])
