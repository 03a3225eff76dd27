"""The catalogue: KV geometries of popular models, and headers of those that have none, as they are published."""

import os
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from swarmkv_lab.errors import SwarmKVError, did_you_mean
from swarmkv_lab.files import DATA, cache_folder, replacing
from swarmkv_lab.sizing.geometry import UBATCH, KVGeometry, KVType, every_nth_full, is_quantized, kv_types
from swarmkv_lab.sizing.gguf_header import is_url, write_header
from swarmkv_lab.sizing.hollow import hollow_context_bytes, hollow_snapshot_bytes

if TYPE_CHECKING:  # sizing needs no llama.cpp
    from swarmkv_lab.llama.model import Model

    Source = str | Path | Model | KVGeometry

_COUNTS = ("n_layer", "n_head_kv", "head_dim_k", "head_dim_v", "n_ctx_train", "window")


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
    """A GGUF that is the header of one of ``headers`` and nothing else, written into the cache folder."""
    pairs = dict(headers()[name])
    path, architecture = cache_folder("headers") / f"{name}.gguf", pairs.pop("architecture")
    with replacing(path) as file:
        write_header(Path(file.name), architecture, {key: pairs[key] for key in pairs.keys() - {"source", "keeps"}})
    return path


def snapshot_bytes(
    source: "Source", n_tokens: int, kv_type: KVType = "f16", *, n_seq_max: int = 1, swa_full: bool = False
) -> int:
    """Bytes of a snapshot of n_tokens, before anything is decoded; settings of its context as there.

    source: a GGUF's path or http(s) URL, for any architecture: a hollow model says it (hollow_snapshot_bytes, also for
    errors); of a URL the header alone is fetched. Also for one of ``headers``. A name of the catalogue, a loaded model
    or a KVGeometry: the formula of KVGeometry, or for a model where none is known the file's hollow model.
    """
    found = _sized_by(source)
    if isinstance(found, KVGeometry):
        return found.snapshot_bytes(n_tokens, kv_type, swa_full=swa_full)
    how: dict[str, Any] = {"n_seq_max": n_seq_max, "swa_full": swa_full}
    return hollow_snapshot_bytes(found, n_tokens, kv_type=kv_types(kv_type), **how)


def context_bytes(
    source: "Source",
    n_ctx: int,
    kv_type: KVType = "f16",
    *,
    n_seq_max: int = 1,
    swa_full: bool = False,
    flash_attn: bool | str = "auto",
    n_batch: int = UBATCH,
) -> int:
    """Bytes of the caches and running states that llama.cpp allocates for a context of n_ctx cells, before it is made.

    source: as in snapshot_bytes. Settings as in Context; flash_attn: "auto" as on the CPU.
    """
    found = _sized_by(source)
    how: dict[str, Any] = {"n_seq_max": n_seq_max, "swa_full": swa_full, "n_batch": n_batch}
    if isinstance(found, KVGeometry):
        flash_attn = is_quantized(kv_types(kv_type)[1]) if flash_attn == "auto" else bool(flash_attn)
        return found.cache_bytes(n_ctx, kv_type, flash_attn=flash_attn, **how)
    return hollow_context_bytes(found, n_ctx, kv_type=kv_types(kv_type), flash_attn=flash_attn, **how)


def _sized_by(source: "Source") -> str | Path | KVGeometry:
    """The formula where one is known of a model, or of a name; else a header."""
    found = _found(source)
    if isinstance(found, str | Path | KVGeometry):
        return found
    found.require_unchanged()
    return found.geometry if found.sized else found.path


def is_file(source: str | Path) -> bool:
    """Whether a source is the path or URL of a GGUF, not a name of the catalogue."""
    known = source in catalogue().index or source in headers()
    return not known and (is_url(source) or str(source).endswith(".gguf") or os.path.exists(source))


def geometry(source: "Source") -> KVGeometry:
    """The KV geometry of a catalogue name (qwen2.5-7b), a GGUF's path or URL, or a loaded model; no weights are read.

    Raises SwarmKVError for anything else, and as KVGeometry.from_header.
    """
    found = _found(source)
    if isinstance(found, KVGeometry):
        return found
    return KVGeometry.from_gguf(found) if isinstance(found, str | Path) else found.geometry


def _found(source: "Source") -> "Source":
    """What is behind a name: a geometry of the catalogue, or the path of a header. Anything else as it is."""
    if not isinstance(source, str | Path):
        if not isinstance(source, KVGeometry) and not hasattr(source, "sized"):
            raise SwarmKVError(f"{source!r} is neither a catalogue name, a GGUF's path, a Model nor a KVGeometry")
        return source
    if source in catalogue().index:
        row = catalogue().loc[str(source)]
        swa = every_nth_full(int(row.n_layer), int(row.every_nth_full)) if row.window else ()
        return KVGeometry(**{name: int(row[name]) for name in _COUNTS}, swa=swa)
    if source in headers():
        return header_path(str(source))
    if is_file(source):
        return source
    names = [*catalogue().index, *headers()]
    meant = did_you_mean(source, names) or f": {', '.join(names)}"
    raise SwarmKVError(f"{source!r} is neither a GGUF's path nor in the catalogue{meant}")
