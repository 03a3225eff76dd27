"""The same weights in several formats: the files that the peers' study compares."""

import warnings
from collections.abc import Iterable
from pathlib import Path

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.loading import model_path
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.requantize import check_format, file_format, requantized

COMMON_FORMATS = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")
"""The formats that people publish models in."""


def in_formats(source: str | Path | Model | None, formats: Iterable[str], *, progress: bool = True) -> dict[str, Path]:
    """A model's file by its own format ("unknown" if its metadata names none), and then the same weights in others.

    Those that cannot be made are left out, with a warning. Raises SwarmKVError for a name that is no format.
    """
    formats = list(formats)
    for weights in formats:
        check_format(weights)
    if isinstance(source, Model):
        source.require_unchanged()
    path = source.path if isinstance(source, Model) else model_path(source)
    paths = {file_format(path) or "unknown": path}
    for weights in formats:
        if weights not in paths:
            try:
                paths[weights] = requantized(path, weights, progress=progress)
            except SwarmKVError as error:
                warnings.warn(f"{weights} is left out: {error}", stacklevel=2)
    return paths
