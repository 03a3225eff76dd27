"""Fork: a decode's threads are not in a forked child, where the next decode would wait for them for ever."""

import os

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.guard import all_guards


class _Process:
    has_decoded = False
    is_orphan = False
    """forked from a process that had decoded"""


def require_threads() -> None:
    """Before a decode: SwarmKVError in a process that was forked after one."""
    if _Process.is_orphan:
        raise SwarmKVError(
            "this process was forked from one that had decoded, and llama.cpp's threads were not forked with it: start "
            'workers by multiprocessing.get_context("spawn"), and load the model in each of them'
        )
    _Process.has_decoded = True


def _in_child() -> None:
    _Process.is_orphan = _Process.has_decoded
    for guard in all_guards():
        if not guard.held:  # one that another thread held would never be let go
            guard._at_fork_reinit()  # type: ignore[attr-defined]  # as threading does with its own


if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=_in_child)
