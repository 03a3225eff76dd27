"""The command bench: strategies, and what people use instead, on one document."""

import argparse
from contextlib import ExitStack
from typing import Any

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.requantize import WEIGHT_FORMATS
from swarmkv_studies.cli.options import RUNS_MODEL, add_command, add_option, cut, open_model, report, say
from swarmkv_studies.cli.parser import names
from swarmkv_studies.common.summary import bench_text
from swarmkv_studies.common.work_times import opened
from swarmkv_studies.peers import strategies as peer_strategies
from swarmkv_studies.peers.weight_files import COMMON_FORMATS, in_formats

_DEPTH = 3501


def add_commands(commands: Any) -> None:
    """Add the command bench to an argparse parser."""
    about = "compare strategies on one document"
    shared = ("--document", *RUNS_MODEL, "--repeats", "--max-tokens", "--json")
    one = add_command(commands, "bench", about, _bench, *shared, example="--depth 1024 --agents 4 --json bench.json")
    add_option(one, "--depth", help=f"tokens to read (default: {_DEPTH}, or all of a shorter document)")
    add_option(one, "--agents", default=2)
    about = f"names, separated by commas, of {', '.join(lab.STRATEGIES)} (default: all)"
    one.add_argument("--strategies", metavar="NAMES", type=names(lab.STRATEGIES), help=about)
    about = f"names, separated by commas, of {', '.join(peer_strategies.PEERS)} (default: none)"
    one.add_argument("--peers", metavar="NAMES", type=names(peer_strategies.PEERS), default=[], help=about)
    about = "first requantize the model to this format, such as q8_0; several, such as q8_0,q4_0, or common for those "
    about += "that models are published in: --tune takes the fastest, whatever it changes in the predictions (default: "
    about += "the model's own)"
    formats = names(WEIGHT_FORMATS, common=COMMON_FORMATS)
    add_option(one, "--weights", choices=None, type=formats, default=[], metavar="FORMATS", help=about)
    about = "first measure the fastest settings, and use them for all"
    one.add_argument("--tune", action="store_true", help=about)


def _bench(args: argparse.Namespace) -> None:
    several = len(args.weights) > 1
    if several and not args.tune:
        raise SwarmKVError(f"--weights: {', '.join(args.weights)} are several formats: name one, or let --tune choose")
    settings: dict[str, Any] = {"n_threads": args.threads} if args.threads is not None else {}
    with ExitStack() as stack:
        model = stack.enter_context(open_model(args, *([] if several else args.weights)))
        tokens = cut(args, model.tokenize(lab.load_document(args.document)), _DEPTH)
        if args.tune:
            n_threads = None if args.threads is None else [args.threads]
            tuned = studies.tune(model, tokens, n_threads=n_threads, weights=args.weights if several else None)
            settings |= studies.fastest_settings(tuned, args.agents, args.max_tokens)
            table = tuned.round(1).to_string(index=False)
            say(args, f"{table}\nfastest end to end, used for all strategies: {settings}")
            if several:
                fastest = studies.fastest_weights(tuned, args.agents, args.max_tokens)
                model = stack.enter_context(opened(in_formats(model, args.weights)[fastest], model))
                say(args, f"in {fastest}: {model.name}")
            say(args, "")
        strategies: list[Any] = args.strategies or list(lab.STRATEGIES)
        if args.peers:
            n_ctx = len(tokens) + 1024 + args.max_tokens
            strategies += stack.enter_context(peer_strategies.opened(args.peers, model, n_ctx, **settings)).values()
        result, _ = studies.bench(
            model,
            tokens,
            depth=len(tokens),
            n_agents=args.agents,
            strategies=strategies,
            repeats=args.repeats,
            max_tokens=args.max_tokens,
            **settings,
        )
    report(args, result, bench_text(result))
