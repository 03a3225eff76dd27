"""Packing: what several agents' questions in one llama_decode cost, and whether splitting them is faster."""

import timeit
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle, islice, product
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import whole_number
from swarmkv_lab.fanout.documents import load_agents
from swarmkv_lab.fanout.fan_out import Prompts, named_prompts
from swarmkv_lab.fanout.watermarks import BRANCH, DOCUMENT
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.model import Model


def packing(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    *,
    n_agents: Sequence[int] = (4, 8),
    agents: Prompts | None = None,
    repeats: int = 5,
    **settings: Any,
) -> pd.DataFrame:
    """Time the questions of n agents over one shared document, in larger and smaller groups: a row per measurement.

    Columns depth (tokens), n_agents, n_tokens (of all questions), groups, repeat, ms. groups: "together", "in pairs",
    "one by one"; and "one sequence", as many tokens of one agent, which is what such a decode costs without other
    sequences. They take turns, after a warm-up; ms are raw. agents: by default the questions of the dossier.
    """
    for n in n_agents:
        whole_number("n_agents", n, 1)
    prompts = named_prompts(model, load_agents("dossier") if agents is None else agents)
    asked = {n: list(islice(cycle(prompts.values()), n)) for n in n_agents}
    longest = max(sum(map(len, questions)) for questions in asked.values())
    with model.context(len(tokens) + longest, n_seq_max=max(n_agents) + 1, **settings) as ctx:
        ctx.decode(tokens, DOCUMENT)
        rows = []
        for repeat, (n, questions) in product(range(repeats + 1), asked.items()):
            by_sequence = list(enumerate(questions, BRANCH))
            sizes = {"together": n, "in pairs": 2, "one by one": 1}
            works = {name: [dict(by_sequence[i : i + size]) for i in range(0, n, size)] for name, size in sizes.items()}
            works["one sequence"] = [{BRANCH: np.concatenate(questions)}]
            for name, groups in works.items():
                for seq_id, _ in by_sequence:
                    ctx.share(DOCUMENT, seq_id)
                ms = 1e3 * timeit.timeit(partial(_decode, ctx, groups), number=1)
                rows.append((len(tokens), n, sum(map(len, questions)), name, repeat, ms))
                for seq_id, _ in by_sequence:
                    ctx.clear(seq_id)
    frame = pd.DataFrame(rows, columns=["depth", "n_agents", "n_tokens", "groups", "repeat", "ms"])
    return frame[frame.repeat > 0].reset_index(drop=True)


def _decode(ctx: Context, groups: Sequence[Mapping[int, np.ndarray]]) -> None:
    for group in groups:
        ctx.decode_many(group)
