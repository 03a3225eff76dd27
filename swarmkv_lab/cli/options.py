"""The options that commands share, each said once, with the checks that come before anything is measured."""

import os
from collections.abc import Callable, Collection
from typing import Any

import click

import swarmkv_lab as lab
from swarmkv_lab.cli.program import STDOUT, Asked
from swarmkv_lab.errors import SwarmKVError, not_one_of

RUNS_MODEL = ("--model", "--threads", "--n-gpu-layers", "--thinking")
"""what every command has that runs a model"""


def checked(check: Callable[[str], Any]) -> Callable[..., Any]:
    """The callback of an option whose value a function of ours checks: its SwarmKVError then names the option.

    A default is not checked: that would load what help and typos can do without.
    """

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        try:
            return value if value is None or value == param.default else check(value)
        except SwarmKVError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return callback


def require_one_of(name: str, known: Collection[str]) -> str:
    """The name, if it is one of the known ones; otherwise a SwarmKVError that suggests what was meant."""
    if name not in known:
        raise SwarmKVError(not_one_of(name, known))
    return name


@checked
def output(path: str) -> str:
    """The callback of a file that is written at the end: refused at once where that would fail."""
    from swarmkv_lab.files import writable

    if path != STDOUT and not os.access(writable(path).parent, os.W_OK):
        raise SwarmKVError(f"the folder of {path!r:.200} does not exist, or nothing can be written in it")
    return path


@checked
def _kv_type(text: str) -> Any:
    from swarmkv_lab.sizing.geometry import kv_types

    key, comma, value = text.partition(",")
    kind = (key, value) if comma else key
    kv_types(kind)
    return kind


_strategy = checked(lambda name: require_one_of(name, lab.STRATEGIES))
_KINDS = "dossier, article or a text, Markdown, HTML or PDF file's path"
_MODELS = "a GGUF's path, a catalogue name such as qwen2.5-0.5b, or org/repo:file.gguf"
_JSON = f"also write the result to this file; {STDOUT}: to stdout, instead of text"
_SHARED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "--agents": ("N", "number of agents", {"type": click.IntRange(1, 100_000)}),
    "--depth": ("N", "tokens of the document to read", {"type": click.IntRange(1)}),
    "--document": ("FILE", _KINDS, {"default": "dossier"}),
    "--json": ("FILE", _JSON, {"callback": output, "show_default": "text alone"}),
    "--kv-type": ("TYPE", "one, or of keys and values, as f16,q8_0", {"callback": _kv_type, "default": "f16"}),
    "--max-tokens": ("N", "tokens of each answer", {"type": click.IntRange(0), "default": 16}),
    "--model": ("MODEL", _MODELS, {"show_default": "SmolLM2-135M"}),
    "--n-gpu-layers": ("N", "layers on the GPU; -1: as many as it can", {"type": click.IntRange(-1), "default": -1}),
    "--strategy": ("NAME", "naive, swarmkv, pooled, shared or batched", {"callback": _strategy, "default": "shared"}),
    "--thinking": ("MODE", "on or off", {"type": click.Choice(["on", "off"]), "show_default": "the model's own"}),
    "--threads": ("N", "threads of llama.cpp", {"type": click.IntRange(1, 512), "show_default": "the physical cores"}),
}


def options(*names: str, **own: Any) -> Callable[[Any], Any]:
    """Shared options as they are, or one of them with what is this command's own about it."""

    def add(command: Any) -> Any:
        for name in reversed(names):
            metavar, about, how = _SHARED[name]
            command = click.option(name, **{"metavar": metavar, "help": about} | how | own)(command)
        return command

    return add


def open_model(asked: Asked) -> "lab.Model":
    """The model that --model names, with --n-gpu-layers of it on a GPU."""
    chat = {} if asked.thinking is None else {"enable_thinking": asked.thinking == "on"}
    return lab.load_model(asked.model, n_gpu_layers=asked.n_gpu_layers, chat_options=chat)


def cut(asked: Asked, tokens: Any, most: int | None = None) -> Any:
    """The first --depth tokens of a document; without it the first ``most``, as far as there are so many."""
    if asked.depth is not None and asked.depth > len(tokens):
        raise SwarmKVError(f"--depth: {asked.depth:,} is too much, the document has {len(tokens):,} tokens")
    return tokens[: asked.depth or most]
