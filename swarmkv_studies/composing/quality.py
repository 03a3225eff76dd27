"""What composing costs: KL, answers that change, right ones; and where along a document its cells are other ones."""

from itertools import pairwise

import numpy as np
import pandas as pd

import swarmkv_lab as lab
from swarmkv_studies.answers.quality import quality
from swarmkv_studies.answers.questions import parts
from swarmkv_studies.composing.study import ARMS, NEUTRAL, OTHER, ROLES

_RESAMPLED = 2000
OWN, MOVED = "its own role", "its own role, 64 positions on"


def composed_quality(scored: pd.DataFrame) -> pd.DataFrame:
    """A row per model and arm; scored: from ``score`` of a composed_study.

    own_tokens: of the prompt, decoded for an agent alone, mean. kl: mean, with its 95 % interval (kl_low, kl_high) from
    2,000 resamplings of the questions. The others are as in ``quality``, against a full prefill of the same prompt.
    """
    frame = quality(scored, lambda name: ARMS[name].reference)
    groups = scored.assign(kl=scored.kl.astype(float), own_tokens=scored.own_tokens.astype(int)).groupby(
        ["model", "arm"], sort=False
    )
    own = pd.DataFrame({"own_tokens": groups.own_tokens.mean().round(1), "kl": groups.kl.mean()})
    own["kl_low"], own["kl_high"] = zip(*map(_interval, (rows.kl for _, rows in groups)), strict=True)
    return own.reset_index().merge(frame, on=["model", "arm"])


def _interval(values: pd.Series) -> tuple[float, float]:
    """Of a mean, 95 %: bootstrap, the same each time."""
    rows = np.random.default_rng(0).integers(0, len(values), (_RESAMPLED, len(values)))
    low, high = np.quantile(values.to_numpy()[rows].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def composed_seam(model: lab.Model, n_tokens: int = 1024) -> pd.DataFrame:
    """How far a document's values are from those behind the agent's own role, by token after the seam.

    A row per prompt that they were computed behind and range of tokens, first to last. error: of a token's values, the
    norm of their difference over their own norm, mean over layers, tokens and the three roles. norm: of its values,
    over the median token's. The floor is a prefill behind the same role at other positions.
    """
    document = model.document(parts(lab.load_document("dossier"), 4)[0])[:n_tokens]
    at = max(len(model.head(role)) for role in ROLES.values())

    def values(behind: str | None, on: int = 0) -> np.ndarray:
        """Float32 (layers, tokens, elements)."""
        state = lab.prefill(model, document, behind=behind, at=at + on, progress=False).state()
        layers = [state.values(layer).reshape(len(document), -1) for layer in range(model.geometry.n_layer)]
        return np.stack(layers)

    alone, neutral = values(None), values(NEUTRAL)
    own = {name: values(role) for name, role in ROLES.items()}
    edges = [0, *(2**i for i in range(len(document).bit_length()) if 2**i < len(document)), len(document)]
    rows = []
    for name, role in ROLES.items():
        cells = {"nothing": alone, "a neutral prompt": neutral, "another role": own[OTHER[name]]}
        for behind, found in {**cells, MOVED: values(role, 64), OWN: own[name]}.items():
            error = (np.linalg.norm(found - own[name], axis=2) / np.linalg.norm(own[name], axis=2)).mean(axis=0)
            norm = np.linalg.norm(found, axis=2)
            norm = (norm / np.median(norm, axis=1, keepdims=True)).mean(axis=0)
            for first, end in pairwise(edges):
                rows.append((behind, first, end - 1, error[first:end].mean(), norm[first:end].mean()))
    frame = pd.DataFrame(rows, columns=["behind", "first", "last", "error", "norm"])
    return frame.groupby(["behind", "first", "last"], sort=False).mean().round(5).reset_index()
