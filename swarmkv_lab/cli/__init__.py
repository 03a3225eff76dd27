"""swarmkv-lab: the lab's command line, for use without Jupyter."""

import argparse
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

import swarmkv_lab as lab
from swarmkv_lab.analysis.summary import bench_text
from swarmkv_lab.cli import snapshots
from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.files import as_json, replacing

_MOST = 10_000  # agents or repeats: far more than anybody can wait for


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2, with one line on stderr, for an error that the user can fix."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # on Windows a pipe's is cp1252, which not every answer fits into
            stream.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    try:
        with _flushed_stdout():
            return args.command(args)
    except BrokenPipeError:  # whoever reads has read enough, as in: swarmkv-lab ... | head -1
        return 1
    except (SwarmKVError, OSError) as error:
        print(f"swarmkv-lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("swarmkv-lab: interrupted", file=sys.stderr)
        return 130


@contextmanager
def _flushed_stdout() -> Iterator[None]:
    """Write out at the end what was printed. If that fails, drop it: Python would fail on it again when it ends."""
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


def _model(args: argparse.Namespace) -> int:
    print(lab.model_path(args.model))
    return 0


def _bench(args: argparse.Namespace) -> int:
    if args.json is not None:
        snapshots.require_output("--json", args.json)
    whole_number("--depth", args.depth, 1)
    whole_number("--agents", args.agents, 1, _MOST)
    whole_number("--repeats", args.repeats, 1, _MOST)
    settings: dict[str, Any] = {"n_threads": args.threads} if args.threads is not None else {}
    with lab.load_model(args.model, n_gpu_layers=args.n_gpu_layers) as model, ExitStack() as open_peers:
        tokens = model.tokenize(lab.load_document(args.document))
        if args.tune:
            tuned = lab.tune(model, tokens[: args.depth], n_threads=None if args.threads is None else [args.threads])
            settings |= lab.fastest_settings(tuned, args.agents, args.max_tokens)
            print(f"{tuned.round(1).to_string(index=False)}\nfastest end to end, used for all strategies: {settings}\n")
        strategies: list[Any] = args.strategies.split(",")
        if args.peers:
            n_ctx = args.depth + 1024 + args.max_tokens
            strategies += open_peers.enter_context(
                lab.peers.opened(args.peers.split(","), model, n_ctx, **settings)
            ).values()
        report, _ = lab.bench(
            model,
            tokens,
            depth=args.depth,
            n_agents=args.agents,
            strategies=strategies,
            repeats=args.repeats,
            max_retries=args.repeats,
            max_tokens=args.max_tokens,
            **settings,
        )
    print(bench_text(report))
    if args.json is not None:
        with replacing(args.json) as file:
            file.write(f"{as_json(report, indent=1)}\n".encode())
    return 0


def _pipeline(args: argparse.Namespace) -> int:
    with lab.load_model(args.model, n_gpu_layers=args.n_gpu_layers) as model:
        pipeline = lab.load_pipeline(args.spec, model)
        with tqdm(total=sum(agent.max_tokens for agent in pipeline.agents), unit="token", desc="answers") as bar:
            run = pipeline.run(args.strategy, on_token=lambda name, token: bar.update())
        if args.json:
            errors = {name: str(error) for name, error in run.errors.items()}
            print(as_json({**run.metrics, "agents": run.agents.to_dict("records"), "errors": errors}))
        else:
            for agent in run.agents[~run.agents.agent.isin(run.errors)].itertuples():
                print(
                    f"{agent.agent} (first token after {agent.first_token_at_ms / 1e3:.1f} s)\n{agent.answer.strip()}\n"
                )
            print(f"{len(pipeline.tokens):,} tokens, {run.strategy}: {run.metrics['end_to_end_ms'] / 1e3:.1f} s")
        for error in run.errors.values():
            print(f"swarmkv-lab: {error}", file=sys.stderr)
        return 1 if run.errors else 0


def _size(args: argparse.Namespace) -> int:
    key, _, value = args.kv_type.partition(",")
    kv_type = (key, value) if value else key
    whole_number("--tokens", args.tokens)
    shape = lab.geometry(args.source)
    record = {
        "source": args.source,
        "tokens": args.tokens,
        "kv_type": args.kv_type,
        "snapshot_bytes": shape.snapshot_bytes(args.tokens, kv_type),
        "bytes_per_token": shape.bytes_per_token(kv_type),
        "measured_bytes": None,
    }
    if args.measure:
        record["measured_bytes"] = lab.measure_kv(args.source, args.tokens, kv_type, progress=not args.json)[
            "measured_bytes"
        ]
    if args.json:
        print(as_json(record))
        return 0
    print(f"{args.source}, {args.tokens:,} tokens, KV in {args.kv_type}")
    print(f"  predicted  {record['snapshot_bytes']:>18,} bytes per snapshot, {record['bytes_per_token']:,} per token")
    if args.measure:
        difference = record["measured_bytes"] - record["snapshot_bytes"]
        print(f"  measured   {record['measured_bytes']:>18,} bytes, {difference:+,} from the prediction")
    return 0


def _reproduce(args: argparse.Namespace) -> int:
    from swarmkv_lab.cli.reproduce import reproduce  # imports Jupyter, which no other command needs

    reproduce(args.profile, reference=args.reference)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swarmkv-lab", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("model", help="print the path of a model; the default model is fetched if necessary")
    one.add_argument("model", nargs="?", help="a GGUF's path or org/repo:file.gguf")
    one.set_defaults(command=_model)

    snapshots.add_commands(commands)

    one = commands.add_parser("bench", help="compare strategies on one document")
    one.add_argument("--depth", type=int, default=3501, help="tokens of the document to read")
    one.add_argument("--agents", type=int, default=2, help="number of agents")
    one.add_argument("--strategies", default=",".join(lab.STRATEGIES), help="names, comma-separated")
    one.add_argument("--peers", help="names, such as llama_state,server_warm; an unknown name lists all")
    one.add_argument("--repeats", type=int, default=3, help="how often each strategy is measured")
    one.add_argument("--max-tokens", type=int, default=16, help="tokens of each answer")
    one.add_argument("--model", help="a GGUF's path or org/repo:file.gguf")
    one.add_argument("--document", default="dossier", help="dossier, article or a file's path")
    one.add_argument("--threads", type=int, help="by default the physical cores")
    one.add_argument("--tune", action="store_true", help="first measure the fastest settings, and use them for all")
    one.add_argument("--n-gpu-layers", type=int, default=-1, help="layers on the GPU; -1: all that the build can")
    one.add_argument("--json", type=Path, help="also write the report to this file")
    one.set_defaults(command=_bench)

    one = commands.add_parser("pipeline", help="run a graph of agents over one document, from a TOML file")
    one.add_argument("spec", help="the file's path, or dossier")
    one.add_argument("--strategy", choices=list(lab.STRATEGIES), default="batched")
    one.add_argument("--model", help="a GGUF's path or org/repo:file.gguf")
    one.add_argument("--n-gpu-layers", type=int, default=-1, help="layers on the GPU; -1: all that the build can")
    one.add_argument("--json", action="store_true", help="one JSON object instead of text")
    one.set_defaults(command=_pipeline)

    one = commands.add_parser("size", help="predict the bytes of a snapshot; needs no weights")
    one.add_argument("source", metavar="NAME_OR_PATH", help="a catalogue name such as qwen2.5-7b, or a GGUF's path")
    one.add_argument("--tokens", type=int, default=3501, help="tokens in the snapshot")
    one.add_argument("--kv-type", default="f16", help="one type, or key and value types such as f16,q8_0")
    one.add_argument("--measure", action="store_true", help="also measure with llama.cpp: the GGUF itself, or a twin")
    one.add_argument("--json", action="store_true", help="one JSON object instead of text")
    one.set_defaults(command=_size)

    one = commands.add_parser("reproduce", help="run the article's experiment, the figures and the notebooks")
    one.add_argument("--profile", choices=["quick", "full"], default="quick", help="how much to measure")
    one.add_argument("--reference", action="store_true", help="for maintainers: replace the committed results")
    one.set_defaults(command=_reproduce)
    return parser
