"""SwarmKV Lab: prefill a document once, fan its KV cache out to many agents, and measure what that saves.

The public names are listed in __init__.pyi, each with the file that it lives in. It is loaded when it is first used,
so importing the lab costs next to nothing, and sizing needs no llama.cpp.
"""

import lazy_loader

from swarmkv_lab.threads import bound_spinning

__version__ = "0.1.0"

bound_spinning()  # before llama.cpp is loaded, and OpenMP's library with it

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
