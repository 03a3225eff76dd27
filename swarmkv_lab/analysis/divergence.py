"""Divergence: how far apart two predictions of the next token, and two runs' answers, are."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from swarmkv_lab.fanout.schedule import Branch


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of the tokens' probabilities, float64 (n_vocab,)."""
    x = np.float64(logits) - np.max(logits)
    return x - np.log(np.exp(x).sum())


def kl_divergence(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    """KL(p || q) in nats between the softmax distributions of two rows of logits."""
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    return float(max(0.0, (np.exp(log_p) * (log_p - log_q)).sum()))


def compare_answers(mine: Sequence[Branch], theirs: Sequence[Branch]) -> pd.DataFrame:
    """Agents' answers beside those of the same agents in another run; columns as in Run.compare."""
    rows = []
    for my, other in zip(mine, theirs, strict=True):
        rows.append(
            {
                "agent": my.name,
                "max_abs_logit_diff": _compare(my, other, lambda p, q: float(np.abs(q - p).max())),
                "kl": _compare(my, other, kl_divergence),
                "same_tokens": my.tokens == other.tokens,
            }
        )
    return pd.DataFrame(rows)


def _compare(mine: Branch, theirs: Branch, how: Callable[[np.ndarray, np.ndarray], float]) -> float:
    return float("nan") if mine.logits is None or theirs.logits is None else how(theirs.logits, mine.logits)
