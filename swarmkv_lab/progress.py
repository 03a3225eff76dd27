"""Progress bars, where somebody watches: in a notebook, or where a terminal shows both stdout and stderr."""

import sys
from typing import Any

from tqdm import auto
from tqdm.std import tqdm as in_terminals


class tqdm(auto.tqdm):
    """tqdm's bar. A log, a file or a pipe gets none of it, whatever ``disable`` says: a bar would be debris there."""

    def __init__(self, *args: Any, disable: bool | None = False, **how: Any) -> None:
        super().__init__(*args, disable=bool(disable) or not _watched(), **how)


def _watched() -> bool:
    in_a_notebook = auto.notebook_tqdm is not in_terminals
    return in_a_notebook or all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))
