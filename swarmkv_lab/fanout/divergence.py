"""Divergence: how different two predictions of the next token are."""

import numpy as np

from swarmkv_lab.errors import SwarmKVError


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of the tokens' probabilities, float64 (n_vocab,)."""
    x = np.float64(logits) - np.max(logits)
    return np.asarray(x - np.log(np.exp(x).sum()))


def kl_divergence(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    """KL(p || q) in nats between the softmax distributions of two rows of logits."""
    if p_logits.shape != q_logits.shape:
        raise SwarmKVError(f"logits of shape {p_logits.shape} and {q_logits.shape} cannot be compared")
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    return float(max(0.0, (np.exp(log_p) * (log_p - log_q)).sum()))
