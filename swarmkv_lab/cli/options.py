"""Options that several commands share."""

import argparse
from collections.abc import Callable
from typing import Any

import swarmkv_lab as lab
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.requantize import COMMON_FORMATS
from swarmkv_lab.sizing.geometry import KVType

MODEL = "a GGUF's path, a catalogue name such as qwen2.5-0.5b, or org/repo:file.gguf"
_SHARED: dict[str, dict[str, Any]] = {
    "file": {"help": "a file that prefill wrote: a path or a URL"},
    "--document": {"default": "dossier", "help": "dossier, article or a file's path"},
    "--json": {"action": "store_true", "help": "one JSON object instead of text"},
    "--kv-type": {"default": "f16", "help": "one type, or key and value types such as f16,q8_0"},
    "--model": {"help": MODEL},
    "--n-gpu-layers": {"type": int, "default": -1, "help": "layers on the GPU; -1: all that the build can"},
    "--threads": {"type": int, "help": "by default the physical cores"},
    "--weights": {"help": "first requantize the model to this format, such as q8_0"},
}


def add_command(
    commands: Any, name: str, about: str, command: Callable[[argparse.Namespace], int | None], *shared: str
) -> argparse.ArgumentParser:
    """The parser of a new command, with the shared options that it has. A command returns its exit status, or None."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about)
    parser.set_defaults(command=command)
    for option in shared:
        parser.add_argument(option, **_SHARED[option])
    return parser


def kv_type(args: argparse.Namespace) -> KVType:
    """What --kv-type names."""
    key, comma, value = args.kv_type.partition(",")
    return (key, value) if comma else key


def open_model(args: argparse.Namespace) -> lab.Model:
    """The model that --model names, in the format that --weights names, with --n-gpu-layers of its layers on a GPU."""
    path = lab.model_path(args.model)
    if args.weights is not None:
        path = lab.requantize(path, args.weights)
    return lab.load_model(path, n_gpu_layers=getattr(args, "n_gpu_layers", -1))


def several_weights(args: argparse.Namespace) -> list[str] | None:
    """The formats that --weights gives --tune to choose from, no longer in args; None where it names one or none."""
    if args.weights != "common" and "," not in (args.weights or ""):
        return None
    if not args.tune:
        raise SwarmKVError(f"--weights {args.weights} names several formats: name one, or let --tune choose")
    formats = list(COMMON_FORMATS) if args.weights == "common" else args.weights.split(",")
    args.weights = None
    return formats
