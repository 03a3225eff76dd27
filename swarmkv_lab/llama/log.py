"""llama.cpp's log: what our own calls cause goes to Python's logging, the rest to whoever listened before us."""

import ctypes
import logging
from collections import deque
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


def take_errors() -> str:
    """What llama.cpp logged as errors since the last call, as a suffix for a message."""
    lines = "; ".join(_last_errors)
    _last_errors.clear()
    return f" (llama.cpp: {lines})" if lines else ""
