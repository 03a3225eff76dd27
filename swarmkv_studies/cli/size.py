"""What the command size does: bytes of a snapshot and its context, of one model or of all in the catalogue."""

from contextlib import suppress
from typing import Any

import click

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.cli.program import STDOUT, Asked, report, table
from swarmkv_lab.errors import SwarmKVError


def run_size(asked: Asked) -> None:
    """Report the bytes of one model's snapshot, predicted and measured, or (--list) the catalogue's bytes per token."""
    if asked.list == (asked.source is not None):
        raise click.UsageError("give either NAME_OR_GGUF or --list", click.get_current_context())
    if asked.list:
        report(asked, *_catalogue(asked.tokens, asked.kv_type))
        return
    kv_type = asked.kv_type if isinstance(asked.kv_type, str) else ",".join(asked.kv_type)
    n_bytes = lab.snapshot_bytes(asked.source, asked.tokens, asked.kv_type)
    context_bytes = lab.context_bytes(asked.source, asked.tokens, asked.kv_type)
    per_token, each = None, f"{round(n_bytes / asked.tokens):,} per token on average"
    with suppress(SwarmKVError):  # where no formula is known
        per_token = lab.geometry(asked.source).bytes_per_token(asked.kv_type)
        each = f"{per_token:,} per token"
    record = {"source": asked.source, "tokens": asked.tokens, "kv_type": kv_type, "snapshot_bytes": n_bytes}
    record |= {"bytes_per_token": per_token, "context_bytes": context_bytes, "measured_bytes": None}
    text = f"{asked.source}, {asked.tokens:,} tokens, KV in {kv_type}\n"
    text += f"  predicted  {n_bytes:>18,} bytes per snapshot, {each}\n"
    text += f"             {context_bytes:>18,} bytes for a context that holds them"
    if asked.measure:
        how = {"n_gpu_layers": asked.n_gpu_layers, "n_threads": asked.threads, "progress": asked.json != STDOUT}
        measured = studies.measure_kv(asked.source, asked.tokens, asked.kv_type, **how)["measured_bytes"]
        record["measured_bytes"] = measured
        text += f"\n  measured   {measured:>18,} bytes, {measured - n_bytes:+,} from the prediction"
    report(asked, record, text)


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
