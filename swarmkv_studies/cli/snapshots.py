"""Commands for snapshot files: prefill, ask, inspect, and the prefix cache."""

import argparse
import sys
import time
from typing import Any

import numpy as np

import swarmkv_lab as lab
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.readers import SUFFIXES
from swarmkv_studies.cli.options import RUNS_MODEL, add_command, add_option, cut, open_model, report
from swarmkv_studies.cli.parser import checked, output


def add_commands(commands: Any) -> None:
    """Add the commands prefill, ask, inspect and cache to an argparse parser."""
    about = "prefill a document once and save its KV state in a file"
    own = ("--document", "--depth", "--kv-type")
    example = "--out doc.kv.safetensors"
    one = add_command(commands, "prefill", about, _prefill, *own, *RUNS_MODEL, "--weights", example=example)
    one.add_argument("--out", type=checked(output), required=True, metavar="FILE", help="the file to write")

    about = "ask questions over a prefilled document, which is not read again, or over any other (--document)"
    example = '--document my.pdf "Who sells?" "Who buys?"'
    one = add_command(commands, "ask", about, _ask, *RUNS_MODEL, "--weights", "--json", example=example)
    add_option(one, "file", nargs="?")
    one.add_argument("questions", nargs="*", metavar="QUESTION", help="each is asked by an agent of its own")
    about = "instead of FILE: dossier, article or a text, Markdown, HTML or PDF file's path (default: none)"
    add_option(one, "--document", default=None, help=about)
    add_option(one, "--depth", help="tokens of it to read (default: all that the model takes)")
    add_option(one, "--strategy", default="shared", help="naive reads the document again")
    add_option(one, "--max-tokens", default=64)

    about = "describe and check a snapshot file; needs no model"
    add_command(commands, "inspect", about, _inspect, "file", "--json", example="doc.kv.safetensors")

    about = "list or clear the snapshots that lab.prefill(..., cache=True) keeps"
    one = add_command(commands, "cache", about, _cache, example="list")
    one.add_argument("action", choices=["list", "clear"], metavar="ACTION", help="list or clear")


def _prefill(args: argparse.Namespace) -> None:
    with open_model(args, args.weights) as model:
        tokens = cut(args, model.tokenize(lab.load_document(args.document)))
        start = time.perf_counter()
        snapshot = lab.prefill(model, tokens, kv_type=args.kv_type, n_threads=args.threads)
        prefilled = time.perf_counter()
        snapshot.save(args.out)
        saved = time.perf_counter()
    print(
        f"{args.out}: {len(snapshot.tokens):,} tokens, {snapshot.nbytes:,} bytes; "
        f"prefill {prefilled - start:.1f} s, saved in {1e3 * (saved - prefilled):,.0f} ms"
    )


def _ask(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    questions = args.questions if args.document is None or args.file is None else [args.file, *args.questions]
    if not questions:
        raise SwarmKVError("there is no question: write at least one, in quotation marks")
    if args.document is None and args.file.lower().endswith(SUFFIXES):
        raise SwarmKVError(
            f"{args.file} is not a file that prefill wrote: ask about a document with --document {args.file}"
        )
    if args.document is None and args.depth is not None:
        raise SwarmKVError("--depth is for --document: a file that prefill wrote is used as it is")
    agents = {f"question {i}": question for i, question in enumerate(questions, 1)}
    text = None if args.document is None else lab.load_document(args.document)
    with open_model(args, args.weights) as model:
        loaded = time.perf_counter()
        if text is None:
            snapshot = lab.KVSnapshot.load(args.file, model)
        else:
            prefix = _that_fit(model, model.read(text), questions, args)
            snapshot = lab.prefill(model, prefix, cache=True, n_threads=args.threads)
        begun = time.perf_counter()
        run = lab.fan_out(model, snapshot, agents, args.strategy, max_tokens=args.max_tokens, n_threads=args.threads)
    first = run.timeline[run.timeline.phase == "sample"].end_ms.min()
    times = {
        "model_ms": 1e3 * (loaded - start),
        "load_ms": 1e3 * (begun - loaded),
        "ttft_ms": 1e3 * (begun - start) + first,
        "end_to_end_ms": 1e3 * (begun - start) + run.metrics["end_to_end_ms"],
    }
    answers = list(run.answers.values())
    how = "read again" if args.strategy == "naive" else "restored"
    what = "the snapshot" if args.document is None else "reading the document"
    texts = [f"> {question}\n{answer.strip()}\n" for question, answer in zip(questions, answers, strict=True)]
    texts.append(
        f"{len(snapshot.tokens):,} tokens {how}, first token after {times['ttft_ms']:,.0f} ms (loading the model "
        f"{times['model_ms']:,.0f}, {what} {times['load_ms']:,.0f}), all answers after "
        f"{times['end_to_end_ms']:,.0f} ms"
    )
    tokens = [agent.tokens for agent in run.branches]
    report(args, {"strategy": args.strategy, **times, "answers": answers, "tokens": tokens}, "\n".join(texts))


def _that_fit(model: lab.Model, tokens: np.ndarray, questions: list[str], args: argparse.Namespace) -> np.ndarray:
    """The first --depth tokens, at most as many as leave the model room for questions and answers; says if not all."""
    depth = min(args.depth or len(tokens), len(tokens))
    room = max(1, model.n_ctx_train - max(len(model.ask(question)) for question in questions) - args.max_tokens)
    if room < depth:
        print(
            f"{args.document} has {len(tokens):,} tokens, and the first {room:,} are read: {model.name} was trained "
            f"for {model.n_ctx_train:,}, question and answer included",
            file=sys.stderr,
        )
    return tokens[: min(depth, room)]


def _inspect(args: argparse.Namespace) -> None:
    about = lab.KVSnapshot.describe(args.file)
    values = {name: f"{value:,}" if isinstance(value, int) else value for name, value in about.items()}
    lines = [f"{name:<16} {value}" for name, value in values.items()]
    lines.append("whole: both checksums match, and the state has the structure that the header describes")
    report(args, about, "\n".join(lines))


def _cache(args: argparse.Namespace) -> None:
    from swarmkv_lab.snapshot import prefix_cache

    if args.action == "clear":
        print(f"removed {prefix_cache.evict(0)} snapshots")
        if left := len(prefix_cache.cached()):
            raise SwarmKVError(f"{left} could not be removed: close the programs that have them open, and try again")
        return
    held = prefix_cache.cached()
    if held.empty:
        print(f"the prefix cache in {prefix_cache.folder()} is empty")
        return
    print(held.to_string(index=False, formatters={"bytes": "{:,}".format, "tokens": "{:,}".format}))
    print(f"{len(held)} snapshots, {held.bytes.sum():,} of at most {prefix_cache.limit():,} bytes")
