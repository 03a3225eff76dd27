"""What is around calls into llama.cpp: one thread at a time, no decode in a forked child, and Ctrl-C.

Ctrl-C ends a long llama_decode between two of its operations, and waits for other calls to end: Python runs signal
handlers between any two instructions of Python code in the main thread, also in llama.cpp's callbacks, and what is
raised there ctypes prints and drops.
"""

import os
import signal
import threading
from _thread import RLock
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import llama_cpp

from swarmkv_lab.errors import SwarmKVError

LONG = 64  # tokens; shorter decodes end soon enough, and asking after each operation would be felt in them
_NONE = llama_cpp.ggml_abort_callback()


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


# -- Ctrl-C


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Around calls that log, or make what has no owner yet: Ctrl-C raises at the end of the block."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    pressed: list[tuple[Any, ...]] = []
    try:
        signal.signal(signal.SIGINT, lambda *signalled: pressed.append(signalled))
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pressed:
            handler(*pressed[0])


class Interrupt:
    """llama.cpp's abort callback, for the backends that ask it (the CPU's does, after each operation).

    Being called is all that it takes for Ctrl-C to raise. It may do so at the callback's very first instruction, where
    a function could not catch it yet; a generator wakes up inside its ``try``.
    """

    def __init__(self) -> None:
        self.raised: BaseException | None = None
        self.callback: Callable[[], None] | None = None
        """called after each operation; what it raises ends the decode"""
        asked = self._asked()
        next(asked)
        self._callback = llama_cpp.ggml_abort_callback(asked.send)

    def _asked(self) -> Generator[bool, Any, None]:
        while True:
            try:
                while True:
                    yield self.raised is not None
                    if self.callback:
                        self.callback()
            except GeneratorExit:
                return
            except BaseException as error:
                self.raised = error

    @contextmanager
    def watching(self, handle: Any, n_tokens: int) -> Generator[None, None, None]:
        """Around a decode of so many tokens: what a signal handler raises in it ends it soon, and is raised then."""
        if n_tokens < LONG:
            yield
            return
        self.raised = None
        try:
            with interrupts_wait():
                llama_cpp.llama_set_abort_callback(handle, self._callback, None)
            yield
        finally:
            with interrupts_wait():
                llama_cpp.llama_set_abort_callback(handle, _NONE, None)
            raised, self.raised = self.raised, None
            if raised is not None:
                raise raised
