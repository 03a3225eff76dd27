"""Divergence: how different two predictions of the next token are."""

from collections.abc import Sequence

import numpy as np

from swarmkv_lab.errors import SwarmKVError


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of the tokens' probabilities, float64 (n_vocab,)."""
    x = np.float64(logits) - np.max(logits)
    return np.asarray(x - np.log(np.exp(x).sum()))


def kl_divergence(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    """KL(p || q) in nats between the softmax distributions of two rows of logits."""
    if p_logits.shape != q_logits.shape or {p_logits.dtype.kind, q_logits.dtype.kind} - set("fiu"):
        sides = (f"{row.dtype} of shape {row.shape}" for row in (p_logits, q_logits))
        raise SwarmKVError(f"logits cannot be compared: {' and '.join(sides)}")
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    return float(max(0.0, (np.exp(log_p) * (log_p - log_q)).sum()))


def divergence(reference: Sequence[np.ndarray], logits: Sequence[np.ndarray]) -> dict[str, float]:
    """Compare rows of logits: kl_mean and kl_max (nats, from the reference) and top1 (share with the same arg-max)."""
    kl = [kl_divergence(p, q) for p, q in zip(reference, logits, strict=True)]
    same = [p.argmax() == q.argmax() for p, q in zip(reference, logits, strict=True)]
    return {"kl_mean": float(np.mean(kl)), "kl_max": float(np.max(kl)), "top1": float(np.mean(same))}
