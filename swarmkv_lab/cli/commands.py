"""ask, cache, cluster, serve. Each loads what it needs when it runs: help and typos are answered at once."""

import signal
import sys
import threading
import time
from itertools import cycle, islice
from typing import Any

import click

import swarmkv_lab as lab
from swarmkv_lab.cli.options import RUNS_MODEL, cut, open_model, options, output
from swarmkv_lab.cli.program import Asked, Command, Group, complain, report, table
from swarmkv_lab.errors import SwarmKVError

_DEPTH = 1024
_SCHEDULER = "tcp://10.0.0.1:8786 or so: a cluster that runs already, instead of workers here"


@click.command(cls=Command, epilog='example: swarmkv-lab ask --document my.pdf "Who sells?" "Who buys?"')
@click.argument("words", nargs=-1, metavar="[FILE] QUESTION...")
@options("--document", default=None, show_default="none")
@options("--depth", show_default="all that the model takes")
@options("--strategy")
@options("--max-tokens", default=64)
@options(*RUNS_MODEL, "--json")
def ask(asked: Asked) -> None:
    """Ask questions over a document.

    The document (--document) is read once and kept; or it is in a FILE that "cache save" wrote. Every question is asked
    by an agent of its own.
    """
    from swarmkv_lab.fanout.documents import SUFFIXES

    start = time.perf_counter()
    given = asked.document is not None
    questions = asked.words if given else asked.words[1:]
    if not questions:
        raise SwarmKVError("there is no question: write at least one, in quotation marks")
    file = asked.words[0]
    if not given and file.lower().endswith(SUFFIXES):
        raise SwarmKVError(f"{file} is not a file that cache save wrote: ask about a document with --document {file}")
    if not given and asked.depth is not None:
        raise SwarmKVError("--depth is for --document: a file that cache save wrote is used as it is")
    text = lab.load_document(asked.document) if given else ""
    with open_model(asked) as model:
        loaded = time.perf_counter()
        if given:
            tokens = _that_fit(model, model.read(text), questions, asked)
            snapshot = lab.prefill(model, tokens, cache=True, n_threads=asked.threads)
        else:
            snapshot = lab.KVSnapshot.load(file, model)
        begun = time.perf_counter()
        how = {"max_tokens": asked.max_tokens, "n_threads": asked.threads}
        run = lab.fan_out(model, snapshot, list(questions), asked.strategy, **how)
    times = {"model_ms": 1e3 * (loaded - start), "load_ms": 1e3 * (begun - loaded)}
    for name, of_run in (("ttft_ms", "first_ttft_ms"), ("end_to_end_ms", "end_to_end_ms")):
        times[name] = 1e3 * (begun - start) + run.metrics[of_run]
    answers, ids = list(run.answers.values()), [branch.tokens for branch in run.branches]
    record = {"strategy": asked.strategy, "depth": len(snapshot.tokens), **times, "answers": answers, "tokens": ids}
    texts = [f"> {question}\n{answer.strip()}\n" for question, answer in zip(questions, answers, strict=True)]
    ms = {name: f"{value:,.0f}" for name, value in times.items()}
    texts.append(
        f"{len(snapshot.tokens):,} tokens; first token after {ms['ttft_ms']} ms, of which the model took "
        f"{ms['model_ms']} to load and the document {ms['load_ms']}; all answers after {ms['end_to_end_ms']} ms"
    )
    report(asked, record, "\n".join(texts))


def _that_fit(model: "lab.Model", tokens: Any, questions: tuple[str, ...], asked: Asked) -> Any:
    """The first --depth tokens, at most as many as leave room for question and answer; stderr says if not all."""
    room = max(1, model.n_ctx_train - max(len(model.ask(question)) for question in questions) - asked.max_tokens)
    chosen = tokens[: asked.depth]
    if room < len(chosen):
        about = f"{model.name} was trained for {model.n_ctx_train:,}, question and answer included"
        print(f"{asked.document} has {len(tokens):,} tokens, and the first {room:,} are read: {about}", file=sys.stderr)
    return chosen[:room]


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


@click.command(cls=Command, epilog="example: swarmkv-lab cluster --workers 2 --agents 4 --depth 256")
@click.option("--workers", type=click.IntRange(1, 1024), default=2, metavar="N", help="workers to start here")
@click.option("--scheduler", metavar="URL", help=_SCHEDULER, show_default="none")
@options("--document")
@options("--depth", show_default=f"{_DEPTH:,}, or all of a shorter document")
@options("--agents", default=8, help="number of agents: the dossier's, again and again")
@options("--strategy", "--max-tokens")
@options("--threads", help="threads of each worker", show_default="its share of the physical cores")
@options("--model", "--n-gpu-layers", "--thinking", "--json")
def cluster(asked: Asked) -> int:
    """Answer many agents on a Dask cluster, or on workers here."""
    from swarmkv_lab.cluster.dispatch import local_cluster, remote_cluster

    text = lab.load_document(asked.document)
    questions = islice(cycle(lab.load_agents("dossier").items()), asked.agents)
    agents = {f"{i} {name}": question for i, (name, question) in enumerate(questions, 1)}
    with open_model(asked) as model:
        tokens = cut(asked, model.read(text), _DEPTH)
        prompts = {name: model.ask(question) for name, question in agents.items()}
    how = {"max_tokens": asked.max_tokens, "n_gpu_layers": asked.n_gpu_layers, "n_threads": asked.threads}
    workers = remote_cluster(asked.scheduler) if asked.scheduler else local_cluster(asked.workers, asked.threads)
    with workers as client:
        run = lab.cluster.fan_out(client, asked.model, tokens, prompts, asked.strategy, **how)
    texts = [f"> {name}: {agents[name]}\n{answer.strip()}\n" for name, answer in run.answers.items()]
    seconds = f"{run.metrics['end_to_end_ms'] / 1e3:.1f} s"
    about = f"{len(agents)} agents, {len(tokens):,} tokens, {asked.strategy}: {seconds}"
    texts += [table(run.workers.set_index("worker")), about]
    errors = {name: str(error) for name, error in run.errors.items()}
    tables = {"agents": run.agents.to_dict("records"), "workers": run.workers.to_dict("records")}
    report(asked, {**run.metrics, **tables, "answers": run.answers, "errors": errors}, "\n".join(texts))
    for error in run.errors.values():
        complain(error)
    return 1 if run.errors else 0


@click.command(cls=Command, epilog="example: swarmkv-lab serve --port 8080 --layout composed")
@click.option("--host", default="127.0.0.1", metavar="NAME", help="address to listen on; others need --key")
@click.option("--port", type=click.IntRange(0, 65_535), default=8080, metavar="N", help="0: one that is free")
@click.option("--key", metavar="TEXT", envvar="SWARMKV_KEY", help="what clients must send", show_default="none")
@click.option("--hosts", multiple=True, metavar="NAME", help="another name that it is called by; repeatable")
@click.option("--layout", default="as_sent", metavar="NAME", help="as_sent, document_first or composed")
@click.option("--exact", is_flag=True, help="one request at a time, with the bits of shared")
@click.option("--cache", is_flag=True, help="documents are kept at the end, and are there after a restart")
@click.option("--n-ctx", type=click.IntRange(1), metavar="N", help="tokens that are held at once", show_default="8192")
@options("--kv-type", *RUNS_MODEL)
def serve(asked: Asked) -> None:
    """Answer agents that speak the OpenAI API.

    What their prompts have in common is prefilled once. Ends on Ctrl-C and SIGTERM.
    """
    from swarmkv_lab.serve.server import Server

    names = ("host", "port", "key", "hosts", "layout", "exact", "cache", "n_ctx", "kv_type")
    how = {name: getattr(asked, name) for name in names} | {"n_threads": asked.threads}
    ended = threading.Event()
    with open_model(asked) as model, Server(model, **how) as server:
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        print(f"{model.name} answers at {server.url}", flush=True)
        while not ended.wait(0.2):  # where another thread got the signal, this one wakes up to handle it
            pass
