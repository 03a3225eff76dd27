"""The commands size and cache: what snapshots take, those that the lab keeps, and those in files of one's own."""

from contextlib import suppress
from typing import Any

import click

import swarmkv_lab as lab
from swarmkv_lab.cli.options import RUNS_MODEL, checked, cut, open_model, option, options, output
from swarmkv_lab.cli.program import Asked, Command, Group, report, table
from swarmkv_lab.errors import SwarmKVError

SOURCE = click.argument("source", required=False, metavar="NAME_OR_GGUF")
TOKENS = click.option("--tokens", type=click.IntRange(1), default=3501, metavar="N", help="tokens in the snapshot")
LIST = click.option("--list", is_flag=True, help="all models of the catalogue, instead of one")


@click.command(cls=Command, epilog="example: swarmkv-lab size qwen2.5-7b --tokens 3501 --kv-type q8_0")
@SOURCE
@LIST
@TOKENS
@options("--kv-type", "--json")
def size(asked: Asked) -> None:
    """Predict the bytes of a snapshot; needs no weights.

    Of a catalogue name such as qwen2.5-7b, or of a GGUF's path or URL, of any architecture: its header is enough.
    """
    report(asked, *predicted(asked))


def predicted(asked: Asked) -> tuple[Any, str]:
    """The bytes of one model's snapshot, or (--list) bytes per token of the whole catalogue: records, and text."""
    if asked.list == (asked.source is not None):
        raise click.UsageError("give either NAME_OR_GGUF or --list", click.get_current_context())
    if asked.list:
        return _catalogue(asked.tokens, asked.kv_type)
    kv_type = asked.kv_type if isinstance(asked.kv_type, str) else ",".join(asked.kv_type)
    n_bytes = lab.snapshot_bytes(asked.source, asked.tokens, asked.kv_type)
    per_token, each = None, f"{round(n_bytes / asked.tokens):,} per token on average"
    with suppress(SwarmKVError):  # where no formula is known
        per_token = lab.geometry(asked.source).bytes_per_token(asked.kv_type)
        each = f"{per_token:,} per token"
    record = {"source": asked.source, "tokens": asked.tokens, "kv_type": kv_type, "snapshot_bytes": n_bytes}
    text = f"{asked.source}, {asked.tokens:,} tokens, KV in {kv_type}\n"
    text += f"  predicted  {n_bytes:>18,} bytes per snapshot, {each}"
    return record | {"bytes_per_token": per_token}, text


def _catalogue(n_tokens: int, kv_type: Any) -> tuple[list[dict[str, Any]], str]:
    """Bytes per token of all models, of so many, as sliding windows count."""
    from swarmkv_lab.sizing.catalogue import headers

    frame = lab.catalogue()[["billions", "attention", "n_ctx_train", "gguf"]]
    n_bytes = [lab.geometry(name).snapshot_bytes(n_tokens, kv_type) for name in frame.index]
    frame.insert(3, "bytes_per_token", [round(n / n_tokens) for n in n_bytes])
    text = table(frame, bytes_per_token="{:,}".format, gguf=lambda known: "yes" if known else "")
    says = f"{len(frame)} models; bytes per token of {n_tokens:,}; those with a gguf are also names for --model"
    says += f"\nwhose size llama.cpp says, from a header: {', '.join(headers())}"
    return frame.reset_index().to_dict("records"), f"{text}\n{says}"


@click.group(cls=Group, no_args_is_help=False)
def cache() -> None:
    """List or clear what was read and kept; save it in files."""


@cache.command("list")
@options("--json")
def list_(asked: Asked) -> None:
    """List what is kept, the last used first."""
    from swarmkv_lab.snapshot import prefix_cache

    held = prefix_cache.cached()[["model", "tokens", "bytes", "used", "file"]].astype({"used": str})
    texts = [table(held.set_index("model"), tokens="{:,}".format, bytes="{:,}".format)] if len(held) else []
    texts.append(f"{len(held)} snapshots in {prefix_cache.folder()}")
    texts.append(f"{held.bytes.sum():,} of at most {prefix_cache.limit():,} bytes")
    report(asked, held.to_dict("records"), "\n".join(texts))


@cache.command()
def clear(asked: Asked) -> None:
    """Remove all that is kept."""
    from swarmkv_lab.snapshot import prefix_cache

    print(f"removed {prefix_cache.evict(0)} snapshots")
    if left := len(prefix_cache.cached()):
        raise SwarmKVError(f"{left} could not be removed: close the programs that have them open, and try again")


@cache.command(epilog="example: swarmkv-lab cache save doc.kv.safetensors --document my.pdf")
@click.argument("file", callback=checked(output))
@options("--document")
@option("--depth", show_default="all")
@options("--kv-type", *RUNS_MODEL)
def save(asked: Asked) -> None:
    """Read a document once and save its KV state in FILE.

    "ask FILE" uses it in another process, today or tomorrow.
    """
    text = lab.load_document(asked.document)
    with open_model(asked) as model:
        tokens = cut(asked, model.read(text))
        snapshot = lab.prefill(model, tokens, kv_type=asked.kv_type, n_threads=asked.threads)
        snapshot.save(asked.file)
    print(f"{asked.file}: {len(snapshot.tokens):,} tokens, {snapshot.nbytes:,} bytes")


@cache.command(epilog="example: swarmkv-lab cache show doc.kv.safetensors")
@click.argument("file")
@options("--json")
def show(asked: Asked) -> None:
    """Describe and check the snapshot in FILE; needs no model."""
    about = lab.KVSnapshot.describe(asked.file)
    values = {name: f"{value:,}" if isinstance(value, int) else value for name, value in about.items()}
    lines = [f"{name:<16} {value}" for name, value in values.items()]
    report(asked, about, "\n".join([*lines, "whole: both checksums match, and the state has the header's structure"]))
