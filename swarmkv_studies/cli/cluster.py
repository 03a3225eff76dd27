"""The command cluster: many agents over one document, on this machine's workers or on a Dask cluster's."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import swarmkv_lab as lab
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.api import default_threads
from swarmkv_studies.cli.options import add_command, add_option, cut, open_model, report
from swarmkv_studies.cli.parser import complain, number
from swarmkv_studies.many_machines.bench import local_cluster

_DEPTH = 1024


def add_commands(commands: Any) -> None:
    """Add the command cluster to an argparse parser."""
    about = "answer many agents over one document on a Dask cluster, or on workers of this machine"
    shared = ("--document", "--model", "--n-gpu-layers", "--max-tokens", "--json")
    one = add_command(commands, "cluster", about, _cluster, *shared, example="--workers 2 --agents 4 --depth 256")
    about = "workers to start on this machine, for a first try"
    one.add_argument("--workers", type=number(1, 1024), default=2, metavar="N", help=about)
    about = "a cluster that runs already, such as tcp://10.0.0.1:8786 (default: none)"
    one.add_argument("--scheduler", metavar="ADDRESS", help=about)
    add_option(one, "--threads", help="threads of each worker (default: its share of the physical cores)")
    add_option(one, "--depth", help=f"tokens to read (default: {_DEPTH}, or all of a shorter document)")
    about = "number of agents: the dossier's questions, again and again"
    add_option(one, "--agents", type=number(1, 100_000), default=8, help=about)
    add_option(one, "--strategy", default="shared")
    about = "a folder that all workers reach (default: they ask each other)"
    one.add_argument("--store", metavar="FOLDER", help=about)


def _cluster(args: argparse.Namespace) -> int:
    with open_model(args) as model:
        tokens = cut(args, model.tokenize(lab.load_document(args.document)), _DEPTH)
    questions = list(islice(cycle(lab.load_agents("dossier").items()), args.agents))
    agents = {f"{i} {name}": question for i, (name, question) in enumerate(questions, 1)}
    with _client(args) as client:
        run = lab.cluster.fan_out(
            client, args.model, tokens, agents, args.strategy, max_tokens=args.max_tokens,
            store=args.store, n_gpu_layers=args.n_gpu_layers, n_threads=args.threads,
        )  # fmt: skip
    workers = run.workers[["worker", "process", "n_threads", "agents", "model_loads", "refused"]]
    texts = [f"{name}\n{answer.strip()}\n" for name, answer in run.answers.items()]
    total = run.metrics["end_to_end_ms"] / 1e3
    texts.append(workers.to_string(index=False))
    texts.append(f"{len(agents)} agents, {len(tokens):,} tokens, {args.strategy}: {total:.1f} s")
    errors = {name: str(error) for name, error in run.errors.items()}
    tables = {"agents": run.agents.to_dict("records"), "workers": workers.to_dict("records")}
    report(args, {**run.metrics, **tables, "errors": errors}, "\n".join(texts))
    for error in run.errors.values():
        complain(error)
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
