"""LlamaGuard: one thread at a time inside llama.cpp."""

from _thread import RLock
from weakref import WeakValueDictionary


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


def all_guards() -> list[LlamaGuard]:
    """Those that there are in this process."""
    return [guard for ref in _guards.valuerefs() if (guard := ref()) is not None]


def inside() -> bool:
    """Whether the calling thread holds any guard: what llama.cpp says then, it says to us."""
    return any(guard.held for guard in all_guards())
