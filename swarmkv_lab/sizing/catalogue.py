"""The catalogue: KV geometries of popular models, from their published configurations."""

import os
from functools import cache
from pathlib import Path
from typing import Protocol

import pandas as pd

from swarmkv_lab.errors import SwarmKVError, did_you_mean
from swarmkv_lab.files import DATA
from swarmkv_lab.sizing.geometry import KVGeometry, KVType, every_nth_full

_COUNTS = ("n_layer", "n_head_kv", "head_dim_k", "head_dim_v", "n_ctx_train", "window")


class HasGeometry(Protocol):
    """A loaded model, as far as sizing is concerned."""

    @property
    def geometry(self) -> KVGeometry:
        """Its KV geometry."""


@cache
def catalogue() -> pd.DataFrame:
    """A row per model: the columns in data/README.md, and ``attention``: MHA, GQA, MLA or sliding window."""
    frame = pd.read_csv(DATA / "catalogue.csv", index_col="name")
    frame[["gguf", "sha256"]] = frame[["gguf", "sha256"]].fillna("")
    frame["attention"] = "GQA"
    frame.loc[frame.n_head_kv == frame.n_head, "attention"] = "MHA"
    frame.loc[frame.window > 0, "attention"] = "sliding window"
    frame.loc[frame.head_dim_v == 0, "attention"] = "MLA"
    return frame


def snapshot_bytes(source: str | Path | HasGeometry | KVGeometry, n_tokens: int, kv_type: KVType = "f16") -> int:
    """Bytes of a snapshot of n_tokens, before anything is decoded; source and errors as in ``geometry``."""
    return geometry(source).snapshot_bytes(n_tokens, kv_type)


def geometry(source: str | Path | HasGeometry | KVGeometry) -> KVGeometry:
    """The KV geometry of a catalogue name (qwen2.5-7b), a GGUF's path or a loaded model; no weights are read.

    Raises SwarmKVError for anything else, and as KVGeometry.from_header.
    """
    if isinstance(source, KVGeometry):
        return source
    if not isinstance(source, str | Path):
        if not hasattr(source, "geometry"):
            raise SwarmKVError(f"{source!r} is neither a catalogue name, a GGUF's path, a Model nor a KVGeometry")
        return source.geometry
    if source in catalogue().index:
        row = catalogue().loc[str(source)]
        counts = {name: int(row[name]) for name in _COUNTS}
        swa = every_nth_full(int(row.n_layer), int(row.every_nth_full)) if row.window else ()
        return KVGeometry(**counts, swa=swa)
    if str(source).endswith(".gguf") or os.path.exists(source):
        return KVGeometry.from_gguf(source)
    names = catalogue().index
    meant = did_you_mean(source, names) or f": {', '.join(names)}"
    raise SwarmKVError(f"{source!r} is neither a GGUF's path nor in the catalogue{meant}")
