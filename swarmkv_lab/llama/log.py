"""llama.cpp's log: what our own calls cause goes to Python's logging, the rest to whoever listened before us."""

import ctypes
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp

from swarmkv_lab.llama.guard import inside

_ERROR = 4  # GGML_LOG_LEVEL_ERROR

log = logging.getLogger("swarmkv_lab.llama_cpp")
log.addHandler(logging.NullHandler())
_last_errors: deque[str] = deque(maxlen=3)
# llama.cpp has one callback for the whole process, and llama_cpp.Llama(verbose=True) prints by it.
_before, _before_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
llama_cpp.llama_log_get(ctypes.byref(_before), ctypes.byref(_before_data))


def _on_log(level: int, text: bytes, _data: Any) -> None:
    """Our own lines at level DEBUG; errors among them also end up in our messages."""
    if not inside():
        if _before:
            _before(level, text, _before_data)
        return
    line = text.decode("utf-8", "replace").rstrip()
    if level == _ERROR and line:
        _last_errors.append(line)
    log.debug(line)


_callback = llama_cpp.llama_log_callback(_on_log)  # kept: llama.cpp holds a bare pointer
llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))


class _Dropped(threading.local):
    """Of each thread: what Python dropped in ``_on_log``, while somebody is there to raise it."""

    errors: list[BaseException] | None = None


_dropped = _Dropped()
_hook_before: Callable[[Any], Any] = sys.__unraisablehook__
_hook_lock = threading.Lock()


def _hook(unraisable: Any) -> None:
    if unraisable.object is _on_log and unraisable.exc_value is not None and _dropped.errors is not None:
        _dropped.errors.append(unraisable.exc_value)
    else:
        _hook_before(unraisable)


def _install_hook() -> None:
    """Once, and again where another program has put its own in the place since."""
    global _hook_before
    with _hook_lock:
        if sys.unraisablehook is not _hook:
            _hook_before, sys.unraisablehook = sys.unraisablehook, _hook


@contextmanager
def interruptible() -> Iterator[None]:
    """Around calls that log: what a signal handler raises in ``_on_log`` is dropped by Python, and raised here."""
    _install_hook()
    before, _dropped.errors = _dropped.errors, []
    try:
        yield
    finally:
        errors, _dropped.errors = _dropped.errors, before
    if errors:
        raise errors[0]


def take_errors() -> str:
    """What llama.cpp logged as errors since the last call, as a suffix for a message."""
    lines = "; ".join(_last_errors)
    _last_errors.clear()
    return f" (llama.cpp: {lines})" if lines else ""
