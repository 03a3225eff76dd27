"""The command ask: questions over a document, each answered by an agent of its own."""

import sys
import time
from typing import Any

import click

import swarmkv_lab as lab
from swarmkv_lab.cli.options import RUNS_MODEL, open_model, options
from swarmkv_lab.cli.program import Asked, Command, report
from swarmkv_lab.errors import SwarmKVError


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
