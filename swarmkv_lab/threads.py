"""How a decode's threads wait for each other: awake for a short while, then asleep.

libgomp's threads spin 300,000 times at each barrier before they sleep, and a decode has hundreds of barriers. While
another program has their cores they spin for nothing, and a decode takes several times as long. A bound costs nothing
that can be measured on a quiet machine.
"""

import os
import re
import warnings
from pathlib import Path

WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SPIN = {"GOMP_SPINCOUNT": "1000"}
_MAPS = Path("/proc/self/maps")  # Linux; elsewhere llama.cpp is rarely built with libgomp


def bound_spinning() -> None:
    """Have libgomp spin for a bounded while, in this process and those that it starts, unless the user said how.

    The variable is read when the library is loaded: warns if that has happened already.
    """
    if any(variable in os.environ for variable in WAIT_VARIABLES):
        return
    os.environ.update(SPIN)
    if _MAPS.is_file() and re.search(r"/libgomp\.so", _MAPS.read_text()):
        (setting,) = (f"{name}={value}" for name, value in SPIN.items())
        warnings.warn(
            "another package loaded OpenMP's library (libgomp) before swarmkv_lab, so its threads spin for long: "
            "beside other programs decodes may take several times as long. Import swarmkv_lab first, or set "
            f"{setting} before Python starts",
            RuntimeWarning,
            stacklevel=2,
        )
