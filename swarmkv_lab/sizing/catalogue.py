"""The catalogue: KV geometries of popular models, and headers of those that have none, as they are published."""

import os
import tomllib
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from swarmkv_lab.errors import SwarmKVError, did_you_mean
from swarmkv_lab.files import DATA, cache_folder, replacing
from swarmkv_lab.sizing.geometry import KVGeometry, KVType, every_nth_full
from swarmkv_lab.sizing.gguf_header import made_header
from swarmkv_lab.sizing.hollow import hollow_snapshot_bytes
from swarmkv_lab.sizing.remote import is_url

_COUNTS = ("n_layer", "n_head_kv", "head_dim_k", "head_dim_v", "n_ctx_train", "window")


class Sized(Protocol):
    """A loaded model, as far as sizing is concerned."""

    path: Path

    @property
    def sized(self) -> bool:
        """Whether ``geometry`` is known."""

    @property
    def geometry(self) -> KVGeometry:
        """Its KV geometry."""

    def require_unchanged(self) -> None:
        """Raise SwarmKVError if its file is another one now."""


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


@cache
def headers() -> dict[str, dict[str, Any]]:
    """By name, models whose size is a hollow model's to say: see data/headers.toml."""
    return tomllib.loads((DATA / "headers.toml").read_text("utf-8"))


def header_path(name: str) -> Path:
    """A GGUF that is the header of one of ``headers`` and nothing else, written into the cache folder on first use."""
    path = cache_folder("headers") / f"{name}.gguf"
    header = made_header({key: value for key, value in headers()[name].items() if key not in ("source", "keeps")})
    with suppress(OSError):
        if path.read_bytes() == header:
            return path
    with replacing(path) as file:
        file.write(header)
    return path


def snapshot_bytes(
    source: str | Path | Sized | KVGeometry,
    n_tokens: int,
    kv_type: KVType = "f16",
    *,
    n_seq_max: int = 1,
    kv_unified: bool = True,
    swa_full: bool = False,
) -> int:
    """Bytes of a snapshot of n_tokens, before anything is decoded; settings of its context as there.

    source: a GGUF's path or http(s) URL, for any architecture: a hollow model says it (hollow_snapshot_bytes, also for
    errors); of a URL the header alone is fetched. Also for one of ``headers``. A name of the catalogue, a loaded model
    or a KVGeometry: the formula of KVGeometry, or for a model where none is known the file's hollow model.
    """
    how: dict[str, Any] = {"kv_type": kv_type, "n_seq_max": n_seq_max, "kv_unified": kv_unified, "swa_full": swa_full}
    if isinstance(source, str | Path):
        if is_file(source):
            return hollow_snapshot_bytes(source, n_tokens, **how)
        if source in headers():
            return hollow_snapshot_bytes(header_path(str(source)), n_tokens, **how)
    elif not isinstance(source, KVGeometry) and not getattr(source, "sized", True):
        source.require_unchanged()
        return hollow_snapshot_bytes(source.path, n_tokens, **how)
    n_stream = 1 if kv_unified else n_seq_max
    return geometry(source).snapshot_bytes(n_tokens, kv_type, n_stream, swa_full=swa_full)


def is_file(source: str | Path) -> bool:
    """Whether a source is the path or URL of a GGUF, not a name of the catalogue."""
    known = source in catalogue().index or source in headers()
    return not known and (is_url(source) or str(source).endswith(".gguf") or os.path.exists(source))


def geometry(source: str | Path | Sized | KVGeometry) -> KVGeometry:
    """The KV geometry of a catalogue name (qwen2.5-7b), a GGUF's path or URL, or a loaded model; no weights are read.

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
    if is_file(source):
        return KVGeometry.from_gguf(source)
    if source in headers():
        raise SwarmKVError(f"no formula is known for {source}; snapshot_bytes needs none")
    names = [*catalogue().index, *headers()]
    meant = did_you_mean(source, names) or f": {', '.join(names)}"
    raise SwarmKVError(f"{source!r} is neither a GGUF's path nor in the catalogue{meant}")
