"""Commands for snapshot files: prefill, ask, inspect, and the prefix cache."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import swarmkv_lab as lab
from swarmkv_lab.cli.options import add_command, kv_type, open_model
from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.fanout.readers import SUFFIXES
from swarmkv_lab.files import as_json, user_path, writable


def add_commands(commands: Any) -> None:
    """Add the commands prefill, ask, inspect and cache to an argparse parser."""
    about = "prefill a document once and save its KV state in a file"
    one = add_command(
        commands, "prefill", about, _prefill, "--document", "--kv-type", "--threads", "--model", "--weights"
    )
    one.add_argument("--depth", type=int, help="tokens of the document to read; all by default")
    one.add_argument("--out", required=True, help="a path, or an fsspec URL such as s3://bucket/doc.kv.safetensors")

    about = "ask questions over a prefilled document, which is not read again, or over any other (--document)"
    one = add_command(commands, "ask", about, _ask, "--threads", "--model", "--weights", "--json")
    one.add_argument("file", nargs="?", metavar="FILE", help="a file that prefill wrote: a path or a URL")
    one.add_argument("questions", nargs="*", metavar="QUESTION", help="each is asked by an agent of its own")
    one.add_argument(
        "--document", help="instead of FILE: dossier, article or a text, Markdown, HTML or PDF file's path"
    )
    one.add_argument("--depth", type=int, help="tokens of it to read; by default all that the model takes")
    one.add_argument(
        "--strategy", default="shared", choices=list(lab.STRATEGIES), help="naive reads the document again"
    )
    one.add_argument("--max-tokens", type=int, default=64, help="tokens of each answer")

    add_command(commands, "inspect", "describe and check a snapshot file; needs no model", _inspect, "file", "--json")

    about = "list or clear the snapshots that lab.prefill(..., cache=True) keeps"
    one = add_command(commands, "cache", about, _cache)
    one.add_argument("action", choices=["list", "clear"])


def require_output(option: str, path: Path) -> None:
    """Raise SwarmKVError, before anything is computed, if this file could not be written in the end."""
    if not os.path.isdir(writable(path).parent):
        raise SwarmKVError(f"{option} {path}: its folder does not exist")


def _prefill(args: argparse.Namespace) -> None:
    with open_model(args) as model:
        tokens = model.tokenize(lab.load_document(args.document))
        if args.depth is not None and not 1 <= args.depth <= len(tokens):
            raise SwarmKVError(f"--depth {args.depth}: the document has {len(tokens):,} tokens")
        if "://" not in args.out:
            require_output("--out", user_path(args.out))
        start = time.perf_counter()
        snapshot = lab.prefill(model, tokens[: args.depth], kv_type=kv_type(args), n_threads=args.threads)
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
    with open_model(args) as model:
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
    if args.json:
        tokens = [agent.tokens for agent in run.branches]
        print(as_json({"strategy": args.strategy, **times, "answers": answers, "tokens": tokens}))
        return
    for question, answer in zip(questions, answers, strict=True):
        print(f"> {question}\n{answer.strip()}\n")
    how = "read again" if args.strategy == "naive" else "restored"
    what = "the snapshot" if args.document is None else "reading the document"
    print(
        f"{len(snapshot.tokens):,} tokens {how}, first token after {times['ttft_ms']:,.0f} ms (loading the model "
        f"{times['model_ms']:,.0f}, {what} {times['load_ms']:,.0f}), all answers after "
        f"{times['end_to_end_ms']:,.0f} ms"
    )


def _that_fit(model: lab.Model, tokens: np.ndarray, questions: list[str], args: argparse.Namespace) -> np.ndarray:
    """The first --depth tokens, at most as many as leave the model room for questions and answers; says if not all."""
    depth = len(tokens) if args.depth is None else min(whole_number("--depth", args.depth, 1), len(tokens))
    room = max(1, model.n_ctx_train - max(len(model.ask(question)) for question in questions) - args.max_tokens)
    if room < depth:
        print(
            f"{args.document} has {len(tokens):,} tokens, and the first {room:,} are read: {model.name} was trained "
            f"for {model.n_ctx_train:,}, question and answer included",
            file=sys.stderr,
        )
    return tokens[: min(depth, room)]


def _inspect(args: argparse.Namespace) -> None:
    about = lab.describe(args.file)
    if args.json:
        print(as_json(about))
        return
    for name, value in about.items():
        print(f"{name:<16} {value:,}" if isinstance(value, int) else f"{name:<16} {value}")
    print("whole: both checksums match, and the state has the structure that the header describes")


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
