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
from swarmkv_lab.cli import answers, cluster, snapshots
from swarmkv_lab.cli.gpu import SUBJECTS, measure_gpu
from swarmkv_lab.cli.options import MODEL, add_command, kv_type, open_model, several_weights
from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.files import DATA, ROOT, as_json, replacing
from swarmkv_lab.llama.loading import in_formats
from swarmkv_lab.measure.work_times import opened

_MOST = 10_000  # agents or repeats: far more than anybody can wait for


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2, with one line on stderr, for an error that the user can fix."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # on Windows a pipe's is cp1252, which not every answer fits into
            stream.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    try:
        with _flushed_stdout():
            return args.command(args) or 0
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
            if sys.stdout:  # a program that was started without one has None
                sys.stdout.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


def _model(args: argparse.Namespace) -> None:
    print(lab.model_path(args.model))


def _bench(args: argparse.Namespace) -> None:
    if args.json is not None:
        snapshots.require_output("--json", args.json)
    if args.depth is not None:
        whole_number("--depth", args.depth, 1)
    whole_number("--agents", args.agents, 1, _MOST)
    whole_number("--repeats", args.repeats, 1, _MOST)
    formats = several_weights(args)
    settings: dict[str, Any] = {"n_threads": args.threads} if args.threads is not None else {}
    with ExitStack() as stack:
        model = stack.enter_context(open_model(args))
        tokens = model.tokenize(lab.load_document(args.document))
        args.depth = args.depth or min(3501, len(tokens))
        if args.tune:
            n_threads = None if args.threads is None else [args.threads]
            tuned = lab.tune(model, tokens[: args.depth], n_threads=n_threads, weights=formats)
            settings |= lab.fastest_settings(tuned, args.agents, args.max_tokens)
            print(f"{tuned.round(1).to_string(index=False)}\nfastest end to end, used for all strategies: {settings}")
            if formats:
                fastest = lab.fastest_weights(tuned, args.agents, args.max_tokens)
                model = stack.enter_context(opened(in_formats(model, formats)[fastest], model))
                print(f"in {fastest}: {model.name}")
            print()
        strategies: list[Any] = args.strategies.split(",")
        if args.peers:
            n_ctx = args.depth + 1024 + args.max_tokens
            peers = lab.peers.opened(args.peers.split(","), model, n_ctx, **settings)
            strategies += stack.enter_context(peers).values()
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


def _pipeline(args: argparse.Namespace) -> int:
    with open_model(args) as model:
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


def _size(args: argparse.Namespace) -> None:
    kind = kv_type(args)
    whole_number("--tokens", args.tokens)
    shape = lab.geometry(args.source)
    predicted, per_token = shape.snapshot_bytes(args.tokens, kind), shape.bytes_per_token(kind)
    measured = None
    if args.measure:
        measured = lab.measure_kv(args.source, args.tokens, kind, progress=not args.json)["measured_bytes"]
    if args.json:
        record = {"source": args.source, "tokens": args.tokens, "kv_type": args.kv_type}
        sizes = {"snapshot_bytes": predicted, "bytes_per_token": per_token, "measured_bytes": measured}
        print(as_json(record | sizes))
        return
    print(f"{args.source}, {args.tokens:,} tokens, KV in {args.kv_type}")
    print(f"  predicted  {predicted:>18,} bytes per snapshot, {per_token:,} per token")
    if measured is not None:
        print(f"  measured   {measured:>18,} bytes, {measured - predicted:+,} from the prediction")


def _reproduce(args: argparse.Namespace) -> None:
    from swarmkv_lab.cli.reproduce import reproduce  # imports Jupyter, which no other command needs

    reproduce(args.profile, reference=args.reference)


def _notebooks(args: argparse.Namespace) -> None:
    from swarmkv_lab.cli.notebooks import project_notebooks
    from swarmkv_lab.cli.working_copies import copy_notebooks

    kept = copy_notebooks(project_notebooks(), ROOT / "work")
    print("work/ holds the notebooks, to run and to change")
    for name in kept:
        print(f"kept your work/{name}, though notebooks/{name} is a newer one: rename yours to get it")


def _dashboard(args: argparse.Namespace) -> None:
    try:
        from swarmkv_lab.cli.dashboard import serve
    except ModuleNotFoundError as error:
        raise SwarmKVError(f"the dashboard needs the package {error.name}: pip install -e '.[dashboard]'") from error

    serve(args.jupyter)


def _gpu(args: argparse.Namespace) -> None:
    measure_gpu(args.names or SUBJECTS, args.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swarmkv-lab", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = add_command(commands, "model", "print the path of a model; the default model is fetched if necessary", _model)
    one.add_argument("model", nargs="?", help=MODEL)

    snapshots.add_commands(commands)
    answers.add_commands(commands)

    shared = ("--document", "--model", "--weights", "--n-gpu-layers", "--threads")
    one = add_command(commands, "bench", "compare strategies on one document", _bench, *shared)
    one.add_argument("--depth", type=int, help="tokens to read; by default 3501, or all of a shorter document")
    one.add_argument("--agents", type=int, default=2, help="number of agents")
    one.add_argument("--strategies", default=",".join(lab.STRATEGIES), help="names, comma-separated")
    one.add_argument("--peers", help="names, such as llama_state,server_warm; an unknown name lists all")
    one.add_argument("--repeats", type=int, default=3, help="how often each strategy is measured")
    one.add_argument("--max-tokens", type=int, default=16, help="tokens of each answer")
    about = "first measure the fastest settings, and use them for all; of several --weights (q8_0,q4_0, or common for "
    about += "those that models are published in) it takes the fastest, whatever it changes in the predictions"
    one.add_argument("--tune", action="store_true", help=about)
    one.add_argument("--json", type=Path, help="also write the report to this file")

    about = "run a graph of agents over one document, from a TOML file"
    one = add_command(commands, "pipeline", about, _pipeline, "--model", "--weights", "--n-gpu-layers", "--json")
    one.add_argument("spec", help="the file's path, or dossier")
    one.add_argument("--strategy", choices=list(lab.STRATEGIES), default="batched")

    cluster.add_commands(commands)

    about = "predict the bytes of a snapshot; needs no weights"
    one = add_command(commands, "size", about, _size, "--kv-type", "--json")
    one.add_argument("source", metavar="NAME_OR_PATH", help="a catalogue name such as qwen2.5-7b, or a GGUF's path")
    one.add_argument("--tokens", type=int, default=3501, help="tokens in the snapshot")
    one.add_argument("--measure", action="store_true", help="also measure with llama.cpp: the GGUF itself, or a twin")

    one = add_command(commands, "reproduce", "run the article's experiment, the figures and the notebooks", _reproduce)
    one.add_argument("--profile", choices=["quick", "full"], default="quick", help="how much to measure")
    one.add_argument("--reference", action="store_true", help="for maintainers: replace the committed results")

    add_command(commands, "notebooks", "copy the notebooks into work/, where you can run and change them", _notebooks)
    one = add_command(commands, "dashboard", "serve the notebooks as web pages, and live explorers", _dashboard)
    about = "of the Jupyter server, after --, such as -- --port=8890 --no-browser"
    one.add_argument("jupyter", nargs="*", metavar="OPTION", help=about)

    about = "for maintainers: the article's experiment on a GPU; a limit: timeout -s INT 300 swarmkv-lab gpu"
    one = add_command(commands, "gpu", about, _gpu)
    one.add_argument("names", nargs="*", metavar="NAME", help=f"by default all of {', '.join(SUBJECTS)}")
    one.add_argument("--out", type=Path, default=DATA / "gpu", help="folder for the measurements")
    return parser
