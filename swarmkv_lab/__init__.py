"""SwarmKV Lab: prefill a document once, fan its KV cache out to many agents, and measure what that saves.

The public names are listed in __init__.pyi, each with the file that it lives in. It is loaded when it is first used,
so importing the lab costs next to nothing, and sizing needs no llama.cpp.
"""

import os
import re
import warnings
from pathlib import Path

import lazy_loader

__version__ = "0.1.0"

_WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_SPIN = "1000"
_MAPS = Path("/proc/self/maps")  # Linux; elsewhere llama.cpp is rarely built with libgomp


def _bound_spinning() -> None:
    """Have libgomp's threads spin for a bounded while at a barrier and then sleep, unless the user said how.

    By default it is 300,000 times, and a decode has hundreds of barriers: while another program has their cores it
    takes several times as long. A bound costs nothing that can be measured on a quiet machine. Processes that are
    started get it too. libgomp reads the variable when it is loaded: warns if that has happened already.
    """
    if any(variable in os.environ for variable in _WAIT_VARIABLES):
        return
    os.environ["GOMP_SPINCOUNT"] = _SPIN
    if _MAPS.is_file() and re.search(r"/libgomp\.so", _MAPS.read_text()):
        warnings.warn(
            "another package loaded OpenMP's library (libgomp) before swarmkv_lab, so its threads spin for long: "
            "beside other programs decodes may take several times as long. Import swarmkv_lab first, or set "
            f"GOMP_SPINCOUNT={_SPIN} before Python starts",
            RuntimeWarning,
            stacklevel=3,
        )


_bound_spinning()  # before llama.cpp is loaded, and OpenMP's library with it

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
