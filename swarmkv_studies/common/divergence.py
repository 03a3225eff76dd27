"""Divergence: how different two rows of predictions are, in one record."""

from collections.abc import Sequence

import numpy as np

from swarmkv_lab.fanout.outcome import kl_divergence


def divergence(reference: Sequence[np.ndarray], logits: Sequence[np.ndarray]) -> dict[str, float]:
    """Compare rows of logits: kl_mean and kl_max (nats, from the reference) and top1 (share with the same arg-max)."""
    kl = [kl_divergence(p, q) for p, q in zip(reference, logits, strict=True)]
    same = [p.argmax() == q.argmax() for p, q in zip(reference, logits, strict=True)]
    return {"kl_mean": float(np.mean(kl)), "kl_max": float(np.max(kl)), "top1": float(np.mean(same))}
