"""The studies' commands and their options. What a command does is loaded when it runs."""

from collections.abc import Callable, Mapping
from typing import Any

import click

import swarmkv_lab as lab
from swarmkv_lab.cli.options import checked, options, require_one_of
from swarmkv_lab.cli.program import Asked, Command

Known = Callable[[], Mapping[str, Any]]


def names(known: Known) -> Callable[..., list[str]]:
    """The callback of an option that is a list of names, separated by commas."""

    def check(text: str) -> list[str]:
        meanings = known()
        return list(dict.fromkeys(require_one_of(name.strip(), meanings) for name in text.split(",")))

    return checked(check)


def _peers() -> Mapping[str, Any]:
    from swarmkv_studies.peers.strategies import PEERS

    return dict.fromkeys(PEERS)


_LISTED = "names, separated by commas"
_PEERS = (
    f"{_LISTED}, of llama_state, llama_prefix, llama_ram_cache, llama_disk_cache, server_cold, server_unified, "
    "server_primed, server_warm, server_slots, transformers"
)


@click.command(cls=Command, epilog="example: swarmkv-lab bench --depth 1024 --agents 4 --json bench.json")
@options("--document")
@options("--depth", show_default="3,501, or all of a shorter document")
@options("--agents", type=click.IntRange(1, 10_000), default=2)
@click.option("--strategies", metavar="NAMES", callback=names(lambda: lab.STRATEGIES), show_default="all",
              help=f"{_LISTED}, of naive, swarmkv, pooled, shared, batched")  # fmt: skip
@click.option("--peers", metavar="NAMES", callback=names(_peers), help=_PEERS, show_default="none")
@click.option("--repeats", type=click.IntRange(1, 10_000), default=3, metavar="N", help="how often each is measured")
@options("--max-tokens", "--threads", "--model", "--weights", "--n-gpu-layers", "--thinking", "--json")
def bench(asked: Asked) -> None:
    """Compare strategies, and what people use instead, on one document."""
    from swarmkv_studies.cli.bench import run_bench

    run_bench(asked)


@click.command(cls=Command, epilog="example: swarmkv-lab reproduce --profile full")
@click.option("--profile", type=click.Choice(["quick", "full"]), default="quick", help="how much to measure")
@click.option("--all-notebooks", is_flag=True, help="execute all of them (quick: the article's two)")
@click.option("--reference", is_flag=True, help="for maintainers: replace the committed results")
def reproduce(asked: Asked) -> None:
    """Run the article's experiment, the figures and notebooks."""
    from swarmkv_studies.cli.reproduce import reproduce

    reproduce(asked.profile, reference=asked.reference, all_notebooks=asked.all_notebooks)


@click.command(cls=Command, epilog="example: swarmkv-lab size qwen2.5-7b --tokens 3501 --measure")
@click.argument("source", required=False, metavar="NAME_OR_GGUF")
@click.option("--list", is_flag=True, help="all models of the catalogue, instead of one")
@click.option("--tokens", type=click.IntRange(1), default=3501, metavar="N", help="tokens in the snapshot")
@click.option("--measure", is_flag=True, help="also measure with llama.cpp: the GGUF itself, or a twin of its shape")
@options("--kv-type", "--threads", "--n-gpu-layers", "--json")
def size(asked: Asked) -> None:
    """Predict the bytes of a snapshot, and measure them.

    Of a catalogue name such as qwen2.5-7b, or of a GGUF's path or URL, of any architecture: the prediction needs its
    header alone.
    """
    from swarmkv_studies.cli.size import run_size

    run_size(asked)
