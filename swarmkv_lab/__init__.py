"""SwarmKV Lab: prefill a document once, fan its KV cache out to many agents, and measure what that saves.

The public names are listed in __init__.pyi, each with the file that it lives in. It is loaded when it is first used,
so importing the lab costs next to nothing, and sizing, analysis and figures need no llama.cpp.
"""

from typing import Any

import lazy_loader

from swarmkv_lab.errors import public
from swarmkv_lab.threads import bound_spinning

__version__ = "0.1.0"

bound_spinning()  # before llama.cpp is loaded, and OpenMP's library with it

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    value = _load(name)
    if not isinstance(value, type):  # a class says itself that it is public: its objects are also made elsewhere
        value = globals()[name] = public(value)
    return value
