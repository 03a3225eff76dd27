"""The command cluster: many agents over one document, on this machine's workers or on a Dask cluster's."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import swarmkv_lab as lab
from swarmkv_lab.cli.options import add_command, open_model
from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.files import as_json
from swarmkv_lab.llama.api import default_threads
from swarmkv_lab.measure.cluster_bench import local_cluster


def add_commands(commands: Any) -> None:
    """Add the command cluster to an argparse parser."""
    about = "answer many agents over one document on a Dask cluster, or on workers of this machine"
    one = add_command(commands, "cluster", about, _cluster, "--document", "--model", "--n-gpu-layers", "--json")
    one.add_argument("--workers", type=int, default=2, help="workers to start on this machine, for a first try")
    one.add_argument("--scheduler", metavar="ADDRESS", help="a cluster that runs already, such as tcp://10.0.0.1:8786")
    one.add_argument("--threads", type=int, help="of each worker; by default its share of the cores")
    one.add_argument("--depth", type=int, help="tokens to read; by default 1024, or all of a shorter document")
    one.add_argument("--agents", type=int, default=8, help="number of agents: the dossier's questions, again and again")
    one.add_argument("--strategy", choices=list(lab.STRATEGIES), default="shared")
    one.add_argument("--max-tokens", type=int, default=16, help="tokens of each answer")
    one.add_argument("--store", help="a folder or an fsspec URL that all workers reach; otherwise they ask each other")


def _cluster(args: argparse.Namespace) -> int:
    whole_number("--workers", args.workers, 1, 1024)
    whole_number("--agents", args.agents, 1, 100_000)
    with open_model(argparse.Namespace(**vars(args) | {"weights": None})) as model:
        tokens = model.tokenize(lab.load_document(args.document))
        depth = min(1024, len(tokens)) if args.depth is None else whole_number("--depth", args.depth, 1, len(tokens))
    questions = list(islice(cycle(lab.load_agents("dossier").items()), args.agents))
    agents = {f"{i} {name}": question for i, (name, question) in enumerate(questions, 1)}
    with _client(args) as client:
        run = lab.cluster.fan_out(
            client, args.model, tokens[:depth], agents, args.strategy, max_tokens=args.max_tokens,
            store=args.store, n_gpu_layers=args.n_gpu_layers, n_threads=args.threads,
        )  # fmt: skip
    workers = run.workers[["worker", "process", "n_threads", "agents", "model_loads", "refused"]]
    if args.json:
        errors = {name: str(error) for name, error in run.errors.items()}
        tables = {"agents": run.agents.to_dict("records"), "workers": workers.to_dict("records")}
        print(as_json({**run.metrics, **tables, "errors": errors}))
    else:
        for name, answer in run.answers.items():
            print(f"{name}\n{answer.strip()}\n")
        print(workers.to_string(index=False))
        total = run.metrics["end_to_end_ms"] / 1e3
        print(f"{len(agents)} agents, {depth:,} tokens, {args.strategy}: {total:.1f} s")
    for error in run.errors.values():
        print(f"swarmkv-lab: {error}", file=sys.stderr)
    return 1 if run.errors else 0


@contextmanager
def _client(args: argparse.Namespace) -> Iterator[Any]:
    if args.scheduler is None:
        threads = args.threads or max(1, default_threads() // args.workers)
        with local_cluster(args.workers, threads) as client:
            yield client
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise SwarmKVError("a cluster needs Dask: pip install 'swarmkv-lab[cluster]'") from error
    try:
        client = Client(args.scheduler, timeout=10)
    except (OSError, ValueError) as error:
        raise SwarmKVError(f"--scheduler {args.scheduler} does not answer: {error}") from error
    with client:
        yield client
