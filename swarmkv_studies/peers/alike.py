"""What prompts begin with alike: a chat template's first tokens, which peers that match prefixes would find too."""

from collections.abc import Mapping

import numpy as np

from swarmkv_lab.errors import SwarmKVError


def shared_prefix(tokens: np.ndarray, prompts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(prefix, prompts): what all the prompts begin with alike goes to the end of the prefix, and is decoded once.

    Every prompt keeps at least one token: a branch's logits come from a decode of its own.
    """
    if not prompts:
        raise SwarmKVError("there are no prompts: nothing can be alike in them")
    alike = 0
    rows = list(prompts.values())
    while all(alike < len(row) - 1 and row[alike] == rows[0][alike] for row in rows):
        alike += 1
    return np.concatenate([tokens, rows[0][:alike]]), {name: row[alike:] for name, row in prompts.items()}
