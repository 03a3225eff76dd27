"""Divergence: how far apart two predictions of the next token are."""

import numpy as np


def kl_divergence(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    """KL(p || q) in nats between the softmax distributions of two rows of logits."""
    log_p, log_q = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in map(np.float64, (p_logits, q_logits)))
    return float(max(0.0, (np.exp(log_p) * (log_p - log_q)).sum()))
