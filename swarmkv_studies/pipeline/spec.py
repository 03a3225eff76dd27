"""Spec: a pipeline written down in a TOML file."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from swarmkv_lab.errors import SwarmKVError, not_one_of, whole_number
from swarmkv_lab.fanout.documents import load_document
from swarmkv_lab.fanout.pipeline import Agent, Pipeline
from swarmkv_lab.files import DATA, read_text, user_path
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import Sampling

_NUMBER = (int, float)
_SAMPLING: dict[str, Any] = {one.name: int if one.type in (int, "int") else _NUMBER for one in fields(Sampling)}
_AGENT: dict[str, Any] = {
    "prompt": str, "after": list, "prefix_tokens": int, "max_tokens": int, "sampling": dict
}  # fmt: skip
_WHOLE: dict[str, Any] = {"document": str, "tokens": int, "agents": dict}


def load_pipeline(source: str | Path, model: Model, *, n_tokens: int | None = None) -> Pipeline:
    """A pipeline from a TOML file, or the one that comes with a document ("dossier").

    n_tokens: of the document, instead of the file's; watermarks keep their share of it.
    Raises SwarmKVError for what the file lacks, and for any key or value that is not one of a pipeline's.
    """
    bundled = DATA / "documents" / f"{source}.pipeline.toml"
    path = bundled if os.path.isfile(bundled) else source
    text = read_text(path)
    try:
        spec = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers too long for Python, and tables nested too deep for it
        raise SwarmKVError(f"{path} is not TOML: {error}") from error
    _check(spec, _WHOLE, str(path), needs=("document", "agents"))
    beside = user_path(path).parent / spec["document"]
    tokens = model.read(load_document(beside if os.path.isfile(beside) else spec["document"]))
    whole = whole_number(f"{path}: tokens", spec.get("tokens", len(tokens)), 1, len(tokens))
    n_tokens = whole if n_tokens is None else whole_number("n_tokens", n_tokens, 1, len(tokens))
    agents = []
    for name, how in spec["agents"].items():
        where = f"{path}: agents.{name}"
        if not isinstance(how, dict):
            raise SwarmKVError(f"{where} is {how!r}: it must be a table with a prompt")
        _check(how, _AGENT, where, needs=("prompt",))
        _check(how.get("sampling", {}), _SAMPLING, f"{where}.sampling")
        if (watermark := how.get("prefix_tokens")) is not None:
            whole_number(f"{where}.prefix_tokens", watermark, 1, whole)
            how = how | {"prefix_tokens": max(1, watermark * n_tokens // whole)}
        agents.append(Agent(name, **how | {"sampling": Sampling(**how.get("sampling", {}))}))
    return Pipeline(model, tokens[:n_tokens], agents)


def _check(table: Mapping[str, Any], known: Mapping[str, Any], where: str, needs: tuple[str, ...] = ()) -> None:
    for key in needs:
        if key not in table:
            raise SwarmKVError(f"{where} has no {key}")
    for key, value in table.items():
        if key not in known:
            raise SwarmKVError(f"{where}: {not_one_of(key, known)}")
        if not isinstance(value, known[key]) or isinstance(value, bool):
            raise SwarmKVError(f"{where}: {key} is {value!r}, of the wrong type")
        if isinstance(value, int):
            whole_number(f"{where}: {key}", value, -(2**63), 2**63 - 1)  # what TOML's own rules allow
