"""LlamaGuard: one thread at a time inside llama.cpp, and no decode in a forked child, whose threads are gone."""

import os
from _thread import RLock
from weakref import WeakValueDictionary

from swarmkv_lab.errors import SwarmKVError


class LlamaGuard(RLock):  # type: ignore[misc]  # final for the type checker only
    """A re-entrant lock around calls into llama.cpp.

    ctypes releases the GIL during a call, so two Python threads really do enter the library together, and two of
    them in one context abort the process. Every method of Model and Context takes its guard; hold it yourself
    (``with ctx.guard:``) to make several calls one step, such as a decode and the reading of its logits.
    """

    # Entered and left in C, as the lock itself is: no signal can come between taking it and knowing that it is taken.

    def __init__(self) -> None:
        _guards[id(self)] = self

    @property
    def held(self) -> bool:
        """Whether the calling thread is inside."""
        return bool(self._is_owned())  # type: ignore[attr-defined]  # as threading.Condition asks


_guards: WeakValueDictionary[int, LlamaGuard] = WeakValueDictionary()


def _all_guards() -> list[LlamaGuard]:
    return [guard for ref in _guards.valuerefs() if (guard := ref()) is not None]


def inside() -> bool:
    """Whether the calling thread holds any guard: what llama.cpp says then, it says to us."""
    return any(guard.held for guard in _all_guards())


_decoded_in: set[int] = set()  # by its id; a forked child finds its parent's here


def require_threads() -> None:
    """Before a decode: SwarmKVError in a process that was forked after one."""
    _decoded_in.add(os.getpid())
    if len(_decoded_in) > 1:
        raise SwarmKVError(
            "this process was forked from one that had decoded, and llama.cpp's threads were not forked with it: start "
            'workers by multiprocessing.get_context("spawn"), and load the model in each of them'
        )


def _in_child() -> None:
    for guard in _all_guards():
        if not guard.held:  # one that another thread held would never be let go
            guard._at_fork_reinit()  # type: ignore[attr-defined]  # as threading does with its own


if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=_in_child)
