"""LlamaGuard: one thread at a time inside llama.cpp."""

import threading


class LlamaGuard:
    """A re-entrant lock around calls into llama.cpp.

    ctypes releases the GIL during a call, so two Python threads really do enter the library together, and two of
    them in one context abort the process. Every method of Model and Context takes its guard; hold it yourself
    (``with ctx.guard:``) to make several calls one step, such as a decode and the reading of its logits.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> "LlamaGuard":
        self._lock.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.release()
