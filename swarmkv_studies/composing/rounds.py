"""Rounds: agents with roles of their own over one document, composed and by full prefills, in turns."""

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from swarmkv_lab.errors import whole_number
from swarmkv_lab.fanout.fan_out import fan_out
from swarmkv_lab.fanout.recorder import BASELINE
from swarmkv_lab.llama.model import Model
from swarmkv_studies.answers.questions import load_questions
from swarmkv_studies.composing.study import ROLES

_FOR = ("the buyer", "the seller", "a bank", "an insurer", "the board", "a regulator", "the press", "a court")
_WAYS = {BASELINE: False, "composed": False, "composed, packed": True}
_KEPT = ["end_to_end_ms", "first_ttft_ms", "last_ttft_ms", "prefill_ms", "share_ms"]
_KEPT += ["prompt_tokens", "computed_tokens", "copied_bytes"]


def role_agents(n: int = 8) -> dict[str, tuple[str, str]]:
    """So many agents, each with a role of its own, of three lengths: {name: (role, question)}."""
    roles = [f"You work for {who}. {list(ROLES.values())[i % len(ROLES)]}" for i, who in enumerate(_FOR)]
    asked = load_questions()[: whole_number("n", n, 1, len(roles))]
    return {one.id: (role, one.question) for one, role in zip(asked, roles, strict=False)}


def composed_rounds(
    model: Model, document: np.ndarray, *, repeats: int = 8, n_agents: int = 8, max_tokens: int = 16
) -> pd.DataFrame:
    """Agents with roles of their own answer over a document's tokens: full prefills, composed, composed and packed.

    A row per run, for ``speedups``; all three take turns in a round (repeat), after a warm-up. The composed runs
    prefill the document too, once, behind the first agent's role.
    """
    agents, rows = role_agents(n_agents), []
    for repeat in tqdm(range(-1, whole_number("repeats", repeats, 1)), desc="composed rounds", disable=None):
        for way, packed in _WAYS.items():
            ids = document if repeat >= 0 else document[:64]
            run = fan_out(model, ids, agents, way.partition(",")[0], max_tokens=max_tokens, packed=packed)
            about = {"repeat": repeat, "strategy": way, "depth": len(ids), "n_agents": len(agents)}
            rows.append(about | {name: run.metrics[name] for name in _KEPT})
    return pd.DataFrame([row for row in rows if row["repeat"] >= 0])
