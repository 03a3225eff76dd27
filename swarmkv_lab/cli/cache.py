"""The command cache: snapshots that the lab keeps, and those in files of one's own."""

import click

import swarmkv_lab as lab
from swarmkv_lab.cli.options import RUNS_MODEL, cut, open_model, options, output
from swarmkv_lab.cli.program import Asked, Group, report, table
from swarmkv_lab.errors import SwarmKVError


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
@click.argument("file", callback=output)
@options("--document")
@options("--depth", show_default="all")
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
