"""The command pipeline: a graph of agents over one document."""

import argparse
from typing import Any

from tqdm.auto import tqdm

import swarmkv_studies as studies
from swarmkv_studies.cli.options import RUNS_MODEL, add_command, add_option, open_model, report
from swarmkv_studies.cli.parser import complain


def add_commands(commands: Any) -> None:
    """Add the command pipeline to an argparse parser."""
    about = "run a graph of agents over one document, from a TOML file"
    shared = (*RUNS_MODEL, "--weights", "--json")
    one = add_command(commands, "pipeline", about, _pipeline, *shared, example="dossier --strategy shared")
    one.add_argument("spec", metavar="FILE", help="the file's path, or dossier")
    add_option(one, "--strategy", default="batched")


def _pipeline(args: argparse.Namespace) -> int:
    with open_model(args, args.weights) as model:
        pipeline = studies.load_pipeline(args.spec, model)
        with tqdm(total=sum(agent.max_tokens for agent in pipeline.agents), unit="token", desc="answers") as bar:
            run = pipeline.run(args.strategy, on_token=lambda name, token: bar.update(), n_threads=args.threads)
    answered = run.agents[~run.agents.agent.isin(run.errors)].itertuples()
    texts = [
        f"{agent.agent} (first token after {agent.ttft_ms / 1e3:.1f} s)\n{agent.answer.strip()}\n" for agent in answered
    ]
    total = f"{len(pipeline.tokens):,} tokens, {run.strategy}: {run.metrics['end_to_end_ms'] / 1e3:.1f} s"
    errors = {name: str(error) for name, error in run.errors.items()}
    record = {**run.metrics, "agents": run.agents.to_dict("records"), "errors": errors}
    report(args, record, "\n".join([*texts, total]))
    for error in run.errors.values():
        complain(error)
    return 1 if run.errors else 0
