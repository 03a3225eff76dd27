"""The command ask: questions over a document, each answered by an agent of its own."""

import sys
import time
from typing import Any

import click

import swarmkv_lab as lab
from swarmkv_lab.cli.options import RUNS_MODEL, open_model, option, options
from swarmkv_lab.cli.program import Asked, Command, report
from swarmkv_lab.errors import SwarmKVError


@click.command(cls=Command, epilog='example: swarmkv-lab ask --document my.pdf "Who sells?" "Who buys?"')
@click.argument("words", nargs=-1, metavar="[FILE] QUESTION...")
@option("--document", default=None, show_default="none")
@option("--depth", show_default="all that the model takes")
@options("--strategy")
@option("--max-tokens", default=64)
@options(*RUNS_MODEL, "--json")
def ask(asked: Asked) -> None:
    """Ask questions over a document.

    The document (--document) is read once and kept; or it is in a FILE that "cache save" wrote. Every question is asked
    by an agent of its own.
    """
    from swarmkv_lab.fanout.documents import SUFFIXES

    start = time.perf_counter()
    questions = asked.words if asked.document is not None else asked.words[1:]
    if not questions:
        raise SwarmKVError("there is no question: write at least one, in quotation marks")
    file, text = asked.words[0], None if asked.document is None else lab.load_document(asked.document)
    if text is None and file.lower().endswith(SUFFIXES):
        raise SwarmKVError(f"{file} is not a file that cache save wrote: ask about a document with --document {file}")
    if text is None and asked.depth is not None:
        raise SwarmKVError("--depth is for --document: a file that cache save wrote is used as it is")
    with open_model(asked) as model:
        loaded = time.perf_counter()
        if text is None:
            snapshot = lab.KVSnapshot.load(file, model)
        else:
            tokens = _that_fit(model, model.read(text), questions, asked)
            snapshot = lab.prefill(model, tokens, cache=True, n_threads=asked.threads)
        begun = time.perf_counter()
        how = {"max_tokens": asked.max_tokens, "n_threads": asked.threads}
        run = lab.fan_out(model, snapshot, list(questions), asked.strategy, **how)
    times = {"model_ms": 1e3 * (loaded - start), "load_ms": 1e3 * (begun - loaded)}
    times["ttft_ms"] = 1e3 * (begun - start) + run.metrics["first_ttft_ms"]
    times["end_to_end_ms"] = 1e3 * (begun - start) + run.metrics["end_to_end_ms"]
    answers, ids = list(run.answers.values()), [branch.tokens for branch in run.branches]
    record = {"strategy": asked.strategy, "depth": len(snapshot.tokens), **times, "answers": answers, "tokens": ids}
    texts = [f"> {question}\n{answer.strip()}\n" for question, answer in zip(questions, answers, strict=True)]
    texts.append(
        f"{len(snapshot.tokens):,} tokens; first token after {times['ttft_ms']:,.0f} ms, of which the model took "
        f"{times['model_ms']:,.0f} to load and the document {times['load_ms']:,.0f}; all answers after "
        f"{times['end_to_end_ms']:,.0f} ms"
    )
    report(asked, record, "\n".join(texts))


def _that_fit(model: "lab.Model", tokens: Any, questions: tuple[str, ...], asked: Asked) -> Any:
    """The first --depth tokens, at most as many as leave room for question and answer; stderr says if not all."""
    depth = min(asked.depth or len(tokens), len(tokens))
    room = max(1, model.n_ctx_train - max(len(model.ask(question)) for question in questions) - asked.max_tokens)
    if room < depth:
        print(
            f"{asked.document} has {len(tokens):,} tokens, and the first {room:,} are read: {model.name} was trained "
            f"for {model.n_ctx_train:,}, question and answer included",
            file=sys.stderr,
        )
    return tokens[: min(depth, room)]
