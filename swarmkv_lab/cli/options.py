"""Options that several commands share."""

import argparse
from collections.abc import Callable
from typing import Any

from swarmkv_lab.sizing.geometry import KVType

_SHARED: dict[str, dict[str, Any]] = {
    "file": {"help": "a file that prefill wrote: a path or a URL"},
    "--document": {"default": "dossier", "help": "dossier, article or a file's path"},
    "--json": {"action": "store_true", "help": "one JSON object instead of text"},
    "--kv-type": {"default": "f16", "help": "one type, or key and value types such as f16,q8_0"},
    "--model": {"help": "a GGUF's path or org/repo:file.gguf"},
    "--n-gpu-layers": {"type": int, "default": -1, "help": "layers on the GPU; -1: all that the build can"},
    "--threads": {"type": int, "help": "by default the physical cores"},
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
