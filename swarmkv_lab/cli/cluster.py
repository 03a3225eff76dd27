"""The command cluster: many agents over one document, on this machine's workers or on a Dask cluster's."""

from itertools import cycle, islice

import click

import swarmkv_lab as lab
from swarmkv_lab.cli.options import cut, open_model, options
from swarmkv_lab.cli.program import Asked, Command, complain, report, table

_DEPTH = 1024
_SCHEDULER = "tcp://10.0.0.1:8786 or so: a cluster that runs already, instead of workers here"


@click.command(cls=Command, epilog="example: swarmkv-lab cluster --workers 2 --agents 4 --depth 256")
@click.option("--workers", type=click.IntRange(1, 1024), default=2, metavar="N", help="workers to start here")
@click.option("--scheduler", metavar="URL", help=_SCHEDULER, show_default="none")
@options("--document")
@options("--depth", show_default=f"{_DEPTH:,}, or all of a shorter document")
@options("--agents", default=8, help="number of agents: the dossier's, again and again")
@options("--strategy", "--max-tokens")
@options("--threads", help="threads of each worker", show_default="its share of the physical cores")
@options("--model", "--weights", "--n-gpu-layers", "--thinking", "--json")
def cluster(asked: Asked) -> int:
    """Answer many agents on a Dask cluster, or on workers here."""
    from swarmkv_lab.cluster.local import local_cluster, remote_cluster

    text = lab.load_document(asked.document)
    questions = islice(cycle(lab.load_agents("dossier").items()), asked.agents)
    agents = {f"{i} {name}": question for i, (name, question) in enumerate(questions, 1)}
    with open_model(asked) as model:
        tokens, path = cut(asked, model.read(text), _DEPTH), str(model.path) if asked.weights else asked.model
        prompts = {name: model.ask(question) for name, question in agents.items()}
    how = {"max_tokens": asked.max_tokens, "n_gpu_layers": asked.n_gpu_layers, "n_threads": asked.threads}
    workers = remote_cluster(asked.scheduler) if asked.scheduler else local_cluster(asked.workers, asked.threads)
    with workers as client:
        run = lab.cluster.fan_out(client, path, tokens, prompts, asked.strategy, **how)
    texts = [f"> {name}: {agents[name]}\n{answer.strip()}\n" for name, answer in run.answers.items()]
    seconds = f"{run.metrics['end_to_end_ms'] / 1e3:.1f} s"
    about = f"{len(agents)} agents, {len(tokens):,} tokens, {asked.strategy}: {seconds}"
    texts += [table(run.workers.set_index("worker")), about]
    errors = {name: str(error) for name, error in run.errors.items()}
    tables = {"agents": run.agents.to_dict("records"), "workers": run.workers.to_dict("records")}
    report(asked, {**run.metrics, **tables, "answers": run.answers, "errors": errors}, "\n".join(texts))
    for error in run.errors.values():
        complain(error)
    return 1 if run.errors else 0
