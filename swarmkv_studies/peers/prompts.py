"""What a peer is asked with and what it answers; and what all prompts begin with, which is decoded once."""

from collections.abc import Iterable, Mapping
from itertools import islice, takewhile

import numpy as np

from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch


def shared_prefix(tokens: np.ndarray, prompts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(prefix, prompts): what all the prompts begin with alike goes to the end of the prefix, and is decoded once.

    A chat template's first tokens, which peers that match prefixes would find too. Every prompt keeps at least one
    token: a branch's logits come from a decode of its own.
    """
    rows = list(prompts.values())
    alike = 0
    while all(alike < len(row) - 1 and row[alike] == rows[0][alike] for row in rows):
        alike += 1
    return np.concatenate([tokens, rows[0][:alike]]), {name: row[alike:] for name, row in prompts.items()}


def take_all(run: Run, branch: Branch, tokens: Iterable[int]) -> None:
    """An answer from the tokens that a peer would give, until the model ends its turn or max_tokens are out."""
    until_end = takewhile(lambda token: not run.model.is_eog(token), tokens)
    branch.tokens += islice(until_end, branch.max_tokens)
