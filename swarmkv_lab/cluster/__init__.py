"""The same fan-out on many processes and machines: the snapshot is a task's result, agents are tasks.

Dask places tasks, moves the snapshot to the workers that need it, runs what a dead worker had to do again on another
one, and makes the snapshot again if all copies are lost.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from swarmkv_lab.errors import ModelNotFoundError, SwarmKVError, whole_number
from swarmkv_lab.fanout.fan_out import Prompts, named_prompts
from swarmkv_lab.fanout.outcome import Outcome
from swarmkv_lab.fanout.recorder import Span
from swarmkv_lab.fanout.schedule import Branch, Schedule
from swarmkv_lab.fanout.strategies import STRATEGIES, Strategy, strategy_named
from swarmkv_lab.llama.loading import model_path
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.model_files import content_hash
from swarmkv_lab.llama.sampling import GREEDY, Sampling
from swarmkv_lab.llama.settings import MAX_SEQUENCES, ContextSettings

if TYPE_CHECKING:  # Dask is an extra, and takes half a second to import
    from distributed import Client

    from swarmkv_lab.cluster.tasks import TaskRecord, WorkerInfo


@dataclass(eq=False, repr=False, kw_only=True)
class ClusterRun(Outcome):
    """An Outcome of many processes: ``timeline`` has a column worker."""

    infos: "dict[str, WorkerInfo]" = field(default_factory=dict)
    """who workers are, by their addresses"""
    refused: dict[str, str] = field(default_factory=dict)
    """why workers take no part"""
    records: "dict[tuple[str, float], TaskRecord]" = field(default_factory=dict)
    """what tasks have done, by worker and the task's begin"""

    @property
    def workers(self) -> pd.DataFrame:
        """A row per worker: worker, process, n_threads, agents answered, model_loads, and why it was refused."""
        frame = pd.DataFrame(self.infos.values()).rename(columns={"address": "worker"}).drop(columns="identity")
        n_agents = Counter(one.worker.address for one in self.records.values() for _ in one.branches)
        frame.insert(3, "agents", [n_agents[worker] for worker in frame.worker])
        return frame.assign(refused=[self.refused.get(worker, "") for worker in frame.worker])

    @property
    def metrics(self) -> dict[str, Any]:
        """As Outcome.metrics; and n_workers that worked, and prefills of the document.

        kv_bytes is the sum of the workers' peaks.
        """
        peaks = dict[str, int]()
        for record in self.records.values():
            peaks[record.worker.address] = max(peaks.get(record.worker.address, 0), record.kv_bytes)
        prefills = sum(map(_is_prefill, self.spans))
        return super().metrics | {"kv_bytes": sum(peaks.values()), "n_workers": len(peaks), "prefills": prefills}

    def add(self, records: "Sequence[TaskRecord]") -> None:
        """What tasks have done, unless it is known already, its times on this run's clock."""
        for record in records:
            worker = record.worker.address
            if (worker, record.began) in self.records:
                continue
            ended = max((span.end_ms for span in record.spans), default=0.0)
            shift = max(0.0, min(1e3 * (record.began - self.began), self.now() - ended))  # of another clock
            for span in record.spans:
                moved = span._replace(start_ms=span.start_ms + shift, end_ms=span.end_ms + shift, worker=worker)
                self.spans.append(moved)
            self.computed += len(self.tokens) * sum(map(_is_prefill, record.spans))
            self.schedule.branches.update({branch.name: branch for branch in record.branches})
            self.records[worker, record.began], self.infos[worker] = record, record.worker


def _is_prefill(span: Span) -> bool:
    return span.agent is None and span.phase == "prefill"


def fan_out(
    client: "Client",
    model_source: str | Path | Model | None,
    tokens: Sequence[int] | np.ndarray,
    agents: Prompts,
    strategy: str | Strategy = "shared",
    *,
    max_tokens: int = 32,
    sampling: Sampling = GREEDY,
    n_gpu_layers: int = -1,
    together: int = 8,
    exact: bool = True,
    callback: Callable[[ClusterRun], None] | None = None,
    progress: bool = True,
    **settings: Any,
) -> ClusterRun:
    """All agents answer over one document on a Dask cluster: as lab.fan_out, with the same answers to the bit.

    model_source: as load_model takes it, on each worker's machine; or a Model that is open here. together: at most so
    many agents are one task (batched packs just these into one decode). exact: only workers with the same llama.cpp for
    the same instruction set take part; False: the last bits may differ. n_threads: by default Dask's threads per
    worker. callback: called with the run when some agents' answers have come; what it raises ends the run, as an
    interrupt does, and nothing goes on in the workers.
    An agent that fails, or whose worker dies each time, is in the run's ``errors``; the others' answers are whole.
    Raises SnapshotMismatchError when no worker has the model, ContextBudgetError before anything is decoded, and
    SwarmKVError when there are no workers.
    """
    from swarmkv_lab.cluster import dispatch, tasks

    chosen = strategy_named(strategy)
    if chosen.name not in STRATEGIES:
        raise SwarmKVError(f"{chosen.name} runs in this process alone; on a cluster: {', '.join(STRATEGIES)}")
    whole_number("together", together, 1, MAX_SEQUENCES - 1)
    asked, source, known = ContextSettings(**settings), model_source, None
    if isinstance(source, Model):
        agents, known, source = named_prompts(source, agents), source.content_hash, source.path.absolute()
    with suppress(ModelNotFoundError):  # only workers may have it
        known = known or content_hash(model_path(source))
    source = None if source is None else str(source)
    empty: dict[str, Any] = {"tokens": np.empty(0, np.int32), "schedule": Schedule([])}  # until they are prepared
    run = ClusterRun(strategy=chosen.name, packed=chosen.packs, **empty)
    with tqdm(unit="agent", desc=chosen.name, disable=not progress or None) as bar:

        def on_answers(n: int) -> None:
            bar.update(n)
            if callback:
                callback(run)

        job = tasks.Job(source, n_gpu_layers, exact, chosen.name, asked)
        workers = dispatch.Dispatch(client, run, job, on_answers)
        workers.agree(known)
        if asked.uses_flash_attn(on_gpu=False):  # with it the number of threads decides a single token's last bits
            asked = replace(asked, n_threads=asked.n_threads or min(info.n_threads for info in run.infos.values()))
        job = replace(workers.job, settings=asked)
        where = {"workers": workers.able(), "pure": False}
        workers.job, named = client.submit(tasks.prepare, job, tokens, agents, max_tokens, together, **where).result()
        run.tokens = workers.job.tokens
        branches = [Branch(name, prompt, max_tokens, sampling, len(run.tokens)) for name, prompt in named.items()]
        run.schedule = Schedule(branches, tolerant=True)
        bar.reset(total=len(branches))
        size = together if chosen.packs else min(together, -(-len(branches) // (2 * len(run.infos))))
        workers.answer([branches[i : i + size] for i in range(0, len(branches), size)])
    return run
