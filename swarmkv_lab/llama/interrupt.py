"""Interrupt: Ctrl-C ends a long llama_decode between two of its operations rather than at its end."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import llama_cpp

from swarmkv_lab.llama.log import interruptible

LONG = 64  # tokens; shorter decodes end soon enough, and asking after each operation would be felt in them
_NONE = llama_cpp.ggml_abort_callback()


class Stopped(Exception):
    """A decode was not needed any more."""


class Interrupt:
    """llama.cpp's abort callback, for the backends that ask it (the CPU's does, after each operation).

    Python runs its signal handlers between any two instructions of Python code in the main thread, so being called is
    all that it takes for Ctrl-C to raise. It may do so at the callback's very first instruction, where a function
    could not catch it yet and ctypes would drop it; a generator wakes up inside its ``try``.
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
            with interruptible():
                llama_cpp.llama_set_abort_callback(handle, self._callback, None)
            yield
        finally:
            with interruptible():
                llama_cpp.llama_set_abort_callback(handle, _NONE, None)
            raised, self.raised = self.raised, None
            if raised is not None:
                raise raised
