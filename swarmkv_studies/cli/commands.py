"""bench, reproduce, size. Each loads what it needs when it runs: help and typos are answered at once."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import click

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.cli.options import checked, cut, open_model, options, require_one_of
from swarmkv_lab.cli.program import STDOUT, Asked, Command, report, table

_DEPTH = 3501
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
_PEERS = f"{_LISTED}, of llama_prefix, llama_ram_cache, llama_state, server_cold, server_warm, transformers"


@click.command(cls=Command, epilog="example: swarmkv-lab bench --depth 1024 --agents 4 --json bench.json")
@options("--document")
@options("--depth", show_default="3,501, or all of a shorter document")
@options("--agents", type=click.IntRange(1, 10_000), default=2)
@click.option("--strategies", metavar="NAMES", callback=names(lambda: lab.STRATEGIES), show_default="all",
              help=f"{_LISTED}, of naive, swarmkv, pooled, shared, batched")  # fmt: skip
@click.option("--peers", metavar="NAMES", callback=names(_peers), help=_PEERS, show_default="none")
@click.option("--repeats", type=click.IntRange(1, 10_000), default=3, metavar="N", help="how often each is measured")
@options("--max-tokens", "--threads", "--model", "--n-gpu-layers", "--thinking", "--json")
def bench(asked: Asked) -> None:
    """Compare strategies, and what people use instead, on one document."""
    from swarmkv_studies.common.summary import bench_text
    from swarmkv_studies.peers.strategies import opened

    text = lab.load_document(asked.document)
    settings: dict[str, Any] = {"n_threads": asked.threads} if asked.threads is not None else {}
    with ExitStack() as stack:
        model = stack.enter_context(open_model(asked))
        tokens = cut(asked, model.read(text), _DEPTH)
        strategies: list[Any] = asked.strategies or list(lab.STRATEGIES)
        if asked.peers:
            n_ctx = len(tokens) + 1024 + asked.max_tokens
            strategies += stack.enter_context(opened(asked.peers, model, n_ctx, **settings)).values()
        how = {"strategies": strategies, "repeats": asked.repeats, "max_tokens": asked.max_tokens, **settings}
        result, _ = studies.bench(model, tokens, depth=len(tokens), n_agents=asked.agents, **how)
    report(asked, result, bench_text(result))


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
    if asked.list == (asked.source is not None):
        raise click.UsageError("give either NAME_OR_GGUF or --list", click.get_current_context())
    if asked.list:
        report(asked, *_catalogue(asked.tokens, asked.kv_type))
        return
    kv_type = asked.kv_type if isinstance(asked.kv_type, str) else ",".join(asked.kv_type)
    n_bytes = lab.snapshot_bytes(asked.source, asked.tokens, asked.kv_type)
    context_bytes = lab.context_bytes(asked.source, asked.tokens, asked.kv_type)
    per_token, each = None, f"{round(n_bytes / asked.tokens):,} per token on average"
    with suppress(lab.SwarmKVError):  # where no formula is known
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
