"""Positions: how predictions change when the prefix's keys are moved to other positions."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import swarmkv_lab as lab
from swarmkv_studies.snapshot_and_rope.rope import shift

WHOLE, HALF, SEAM, NOTHING = "whole prefix", "second half", "seam", "nothing"


def position_error(
    model: lab.Model, tokens: np.ndarray, gaps: Sequence[int] = (1, 10, 30, 100, 300, 900), continuation: int = 48
) -> pd.DataFrame:
    """KL to the unshifted run over the last ``continuation`` tokens of a document, a row per shifted part and gap.

    "whole prefix": every cached key moves by the gap, and the continuation starts that much later. RoPE is relative, so
    only the rounding of the rotated keys changes. "second half": only the prefix's second half moves, which leaves a
    gap in it. "seam": no key moves, and the continuation starts that much too late, which leaves a gap between prefix
    and continuation (too early is refused by llama.cpp). "nothing": no key moves, and other kernels (flash attention)
    compute the same; this is the noise floor, one row with gap 0. Columns: shifted, gap (positions) and kl_mean (nats).
    Raises SwarmKVError for a continuation or gaps that document and model do not allow.
    """
    half = (len(tokens) - continuation) // 2
    if not 0 < continuation < len(tokens) - 1:
        raise lab.SwarmKVError(f"continuation={continuation}: it must be from 1 to {len(tokens) - 2}")
    if min(gaps, default=0) < 1 or len(tokens) + max(gaps) > model.n_ctx_train:
        raise lab.SwarmKVError(
            f"gaps must be from 1 to {model.n_ctx_train - len(tokens):,}: {model.name} was trained for "
            f"{model.n_ctx_train:,} positions, and the document takes {len(tokens):,}"
        )
    prefix, rest = tokens[:-continuation], tokens[-continuation:]
    with model.context(len(tokens), flash_attn=True) as ctx:
        ctx.decode(prefix, progress=True)
        other_kernels = _predictions(ctx, rest)
    with model.context(len(tokens) + max(gaps), flash_attn=False) as ctx:
        ctx.decode(prefix, progress=True)
        snapshot = lab.KVSnapshot.capture(ctx, prefix)

        def shifted(gap: int, start: int) -> list[np.ndarray]:
            snapshot.restore(ctx)
            shift(ctx, gap, start)
            return _predictions(ctx, rest)

        def late(gap: int) -> list[np.ndarray]:
            ctx.set_state(_later(snapshot, gap))
            return _predictions(ctx, rest)

        reference = _predictions(ctx, rest)
        rows = [{"shifted": NOTHING, "gap": 0, "kl_mean": _divergence(reference, other_kernels)}]
        for gap in tqdm(gaps, desc="gaps", unit="gap", leave=False, disable=None):
            for name, start in ((WHOLE, 0), (HALF, half)):
                rows.append({"shifted": name, "gap": gap, "kl_mean": _divergence(reference, shifted(gap, start))})
            rows.append({"shifted": SEAM, "gap": gap, "kl_mean": _divergence(reference, late(gap))})
    return pd.DataFrame(rows)


def _predictions(ctx: lab.Context, tokens: np.ndarray) -> list[np.ndarray]:
    """The logits after each token, float32 (n_vocab,); the tokens are decoded one by one, as in generation."""
    rows = []
    for token in tokens:
        ctx.decode([token])
        rows.append(ctx.logits())
    return rows


def _divergence(reference: Sequence[np.ndarray], logits: Sequence[np.ndarray]) -> float:
    """KL in nats from the reference, mean over the tokens."""
    return float(np.mean([lab.kl_divergence(p, q) for p, q in zip(reference, logits, strict=True)]))


def _later(snapshot: lab.KVSnapshot, gap: int) -> np.ndarray:
    """A snapshot's bytes that say of each key a position ``gap`` later than the one it was rotated to.

    llama.cpp believes it, and goes on that much later. No shift could do this: it rotates the keys as well.
    """
    data = snapshot.data.copy()
    lab.SequenceState(data, snapshot.state().geometry).positions[:] += gap
    return data
