"""The options that commands share, each said once, and what they do."""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

import swarmkv_lab as lab
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.files import as_json, replacing
from swarmkv_lab.llama.requantize import WEIGHT_FORMATS
from swarmkv_lab.llama.settings import MAX_THREADS
from swarmkv_lab.sizing.geometry import KVType, kv_types
from swarmkv_studies.cli.parser import STDOUT, checked, number, output

MODEL = "a GGUF's path, a catalogue name such as qwen2.5-0.5b, or org/repo:file.gguf (default: SmolLM2-135M)"
RUNS_MODEL = ("--model", "--n-gpu-layers", "--threads")
"""what every command has that runs a model"""
_MOST = 10_000  # agents or repeats: far more than anybody can wait for


def _kv_type(text: str) -> KVType:
    key, comma, value = text.partition(",")
    kind = (key, value) if comma else key
    kv_types(kind)
    return kind


def _json(text: str) -> str:
    return text if text == STDOUT else output(text)


_SHARED: dict[str, dict[str, Any]] = {
    "file": {"metavar": "FILE", "help": "a file that prefill wrote: a path or a URL"},
    "--agents": {"type": number(1, _MOST), "metavar": "N", "help": "number of agents"},
    "--depth": {"type": number(1), "metavar": "N", "help": "tokens of the document to read (default: all)"},
    "--document": {
        "default": "dossier",
        "metavar": "FILE",
        "help": "dossier, article or a text, Markdown, HTML or PDF file's path",
    },
    "--json": {
        "type": checked(_json),
        "metavar": "FILE",
        "help": f"also write the result to this file; {STDOUT}: to stdout, instead of text (default: text alone)",
    },
    "--kv-type": {
        "type": checked(_kv_type),
        "default": "f16",
        "metavar": "TYPE",
        "help": "one type, or key and value types such as f16,q8_0",
    },
    "--max-tokens": {"type": number(), "default": 16, "metavar": "N", "help": "tokens of each answer"},
    "--model": {"metavar": "MODEL", "help": MODEL},
    "--n-gpu-layers": {
        "type": number(-1),
        "default": -1,
        "metavar": "N",
        "help": "layers on the GPU; -1: all that the build can",
    },
    "--repeats": {"type": number(1, _MOST), "default": 3, "metavar": "N", "help": "how often each is measured"},
    "--strategy": {"choices": list(lab.STRATEGIES), "help": "how the agents get the document"},
    "--threads": {
        "type": number(1, MAX_THREADS),
        "metavar": "N",
        "help": "threads of llama.cpp (default: the physical cores)",
    },
    "--weights": {
        "choices": list(WEIGHT_FORMATS),
        "metavar": "FORMAT",
        "help": "first requantize the model to this format, such as q8_0 (default: its own)",
    },
}


def add_command(
    commands: Any,
    name: str,
    about: str,
    command: Callable[[argparse.Namespace], int | None],
    *shared: str,
    example: str,
) -> argparse.ArgumentParser:
    """The parser of a new command, with the shared options that it has. A command returns its exit status, or None."""
    epilog = f"example:\n  swarmkv-lab {name} {example}".rstrip()
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about, epilog=epilog)
    parser.set_defaults(command=command)
    for option in shared:
        add_option(parser, option)
    return parser


def add_option(parser: argparse.ArgumentParser, name: str, **own: Any) -> None:
    """Add a shared option, with what is this command's own about it."""
    parser.add_argument(name, **_SHARED[name] | own)


def open_model(args: argparse.Namespace, weights: str | None = None) -> lab.Model:
    """The model that --model names, requantized to ``weights`` if it is given, with --n-gpu-layers of it on a GPU."""
    path = lab.model_path(args.model)
    return lab.load_model(lab.requantize(path, weights) if weights else path, n_gpu_layers=args.n_gpu_layers)


def cut(args: argparse.Namespace, tokens: np.ndarray, most: int | None = None) -> np.ndarray:
    """The first --depth tokens of a document; without it the first ``most``, as far as there are so many."""
    if args.depth is not None and args.depth > len(tokens):
        raise SwarmKVError(f"--depth: {args.depth:,} is too much, the document has {len(tokens):,} tokens")
    return tokens[: args.depth or most]


def say(args: argparse.Namespace, text: str) -> None:
    """Print what people read; not where --json has stdout to itself."""
    if args.json != STDOUT:
        print(text)


def report(args: argparse.Namespace, result: Any, text: str) -> None:
    """A command's result: as text, and as JSON where --json says."""
    say(args, text)
    if args.json == STDOUT:
        print(as_json(result, indent=1))
    elif args.json is not None:
        with replacing(args.json) as file:
            file.write(f"{as_json(result, indent=1)}\n".encode())
