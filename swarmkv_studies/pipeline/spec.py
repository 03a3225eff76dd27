"""Spec: a pipeline written down in a TOML file."""

import tomllib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from swarmkv_lab.errors import SwarmKVError, not_one_of, whole_number
from swarmkv_lab.fanout.documents import load_document
from swarmkv_lab.fanout.pipeline import Agent, Pipeline
from swarmkv_lab.files import DATA, read_text, user_path
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import Sampling

_AGENT, _SAMPLING = ([field.name for field in fields(kind)] for kind in (Agent, Sampling))


def load_pipeline(source: str | Path, model: Model, *, n_tokens: int | None = None) -> Pipeline:
    """A pipeline from a TOML file, or the one that comes with a document ("dossier").

    n_tokens: of the document, instead of the file's; watermarks keep their share of it.
    Raises SwarmKVError for what the file lacks, and for any key or value that is not one of a pipeline's.
    """
    bundled = DATA / "documents" / f"{source}.pipeline.toml"
    path = bundled if bundled.is_file() else user_path(source)
    try:
        spec = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # also numbers too long for Python, and tables nested too deep for it
        raise SwarmKVError(f"{path} is not TOML: {error}") from error
    _check(f"{path}", spec, ("document", "tokens", "agents"), needs=("document", "agents"))
    beside = path.parent / str(spec["document"])
    tokens = model.read(load_document(beside if beside.is_file() else str(spec["document"])))
    whole = whole_number(f"{path}: tokens", spec.get("tokens", len(tokens)), 1, len(tokens))
    n_tokens = whole if n_tokens is None else whole_number("n_tokens", n_tokens, 1, len(tokens))
    agents = []
    _check(f"{path}: agents", spec["agents"], spec["agents"])
    for name, how in spec["agents"].items():
        where = f"{path}: agents.{name}"
        _check(where, how, _AGENT[1:], needs=("prompt",))
        _check(f"{where}.sampling", how.get("sampling", {}), _SAMPLING)
        if (watermark := how.get("prefix_tokens")) is not None:
            whole_number(f"{where}.prefix_tokens", watermark, 1, whole)
            how = how | {"prefix_tokens": max(1, watermark * n_tokens // whole)}
        agents.append(Agent(name, **how | {"sampling": Sampling(**how.get("sampling", {}))}))
    return Pipeline(model, tokens[:n_tokens], agents)


def _check(where: str, table: Any, known: Iterable[str], needs: Iterable[str] = ()) -> None:
    """Raise SwarmKVError unless it is a table with these keys and no unknown ones; the values are checked in use."""
    if not isinstance(table, dict):
        raise SwarmKVError(f"{where} is {table!r}: it must be a table")
    for key in needs:
        if key not in table:
            raise SwarmKVError(f"{where} has no {key}")
    for key in table:
        if key not in known:
            raise SwarmKVError(f"{where}: {not_one_of(key, known)}")
