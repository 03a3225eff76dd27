"""Interrupt: Ctrl-C ends a long llama_decode between two of its operations, and waits for other calls to end.

Python runs signal handlers between any two instructions of Python code in the main thread, also in llama.cpp's
callbacks, and what is raised there ctypes prints and drops.
"""

import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp

LONG = 64  # tokens; shorter decodes end soon enough, and asking after each operation would be felt in them
_NONE = llama_cpp.ggml_abort_callback()


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


class Stopped(Exception):
    """A decode was not needed any more."""


class Interrupt:
    """llama.cpp's abort callback, for the backends that ask it (the CPU's does, after each operation).

    Being called is all that it takes for Ctrl-C to raise. It may do so at the callback's very first instruction, where
    a function could not catch it yet; a generator wakes up inside its ``try``.
    """

    def __init__(self) -> None:
        self.raised: BaseException | None = None
        self.unless: Callable[[], bool] | None = None
        """when it says yes, the decode ends with Stopped"""
        asked = self._asked()
        next(asked)
        self._callback = llama_cpp.ggml_abort_callback(asked.send)

    def _asked(self) -> Generator[bool, Any, None]:
        while True:
            try:
                while True:
                    yield self.raised is not None
                    if self.unless and self.unless():
                        self.raised = Stopped()
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
