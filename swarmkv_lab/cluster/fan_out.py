"""fan_out on a cluster: all agents answer over one document, on whatever workers there are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from swarmkv_lab.cluster import tasks
from swarmkv_lab.cluster.clients import opened
from swarmkv_lab.cluster.coordinator import Coordinator
from swarmkv_lab.cluster.job import Job
from swarmkv_lab.errors import ModelNotFoundError, SwarmKVError, whole_number
from swarmkv_lab.fanout.fan_out import Prompts
from swarmkv_lab.fanout.outcome import Outcome
from swarmkv_lab.fanout.recorder import Recorder
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch, Schedule
from swarmkv_lab.fanout.strategies import STRATEGIES, Strategy, strategy_named
from swarmkv_lab.files import user_path
from swarmkv_lab.llama.loading import model_path
from swarmkv_lab.llama.model import Model, content_hash
from swarmkv_lab.llama.sampling import GREEDY, Sampling
from swarmkv_lab.llama.settings import MAX_SEQUENCES, ContextSettings


@dataclass(eq=False)
class ClusterRun(Outcome):
    """An Outcome of many processes. ``timeline`` has a column worker; ``workers``: DataFrame, a row per worker."""

    schedule: Schedule
    strategy: str
    packed: bool
    recorder: Recorder
    job: Job
    coordinator: Coordinator
    repeats: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def depth(self) -> int:
        """Tokens of the document."""
        return len(self.job.tokens)

    @property
    def answers(self) -> dict[str, str]:
        """The answers' text by agent; empty until an agent has ended."""
        return {branch.name: self.coordinator.texts.get(branch.name, "") for branch in self.branches}

    @property
    def workers(self) -> pd.DataFrame:
        """A row per worker: worker, process, n_threads, agents answered, model_loads, joined_ms, gone_ms, refused."""
        return self.coordinator.crew.table()

    @property
    def metrics(self) -> dict[str, Any]:
        """As Outcome.metrics; and n_workers, prefills of the document, and the most model_loads of a worker.

        kv_bytes is the sum of the workers' peaks.
        """
        workers = self.workers
        spans = [span for span in self.recorder.so_far() if span.agent == self.prefix_lane]
        return super().metrics | {
            "n_workers": int(workers.joined_ms.notna().sum()),
            "prefills": sum(span.phase == "prefill" for span in spans),
            "model_loads": int(workers.model_loads.max()),
        }


def fan_out(
    client: Any,
    model_source: "str | Model | None",
    tokens: Sequence[int] | np.ndarray,
    agents: Prompts,
    strategy: str | Strategy = "shared",
    *,
    max_tokens: int = 32,
    sampling: Sampling = GREEDY,
    n_ctx: int | None = None,
    n_gpu_layers: int = -1,
    store: str | Path | None = None,
    together: int = 8,
    exact: bool = True,
    on_token: Callable[[str, int], None] | None = None,
    callback: Callable[[ClusterRun], None] | None = None,
    progress: bool = True,
    **settings: Any,
) -> ClusterRun:
    """All agents answer over one document, on a cluster: as lab.fan_out, with the same answers to the bit.

    client: a Dask Client, or a concurrent.futures.Executor of this machine (processes, spawned). model_source: as
    load_model takes it, on each worker's machine; or a Model that is open here. One worker captures the document, or
    finds it where it was captured before; agents wait in a queue, and a free worker takes the next one, also a worker
    that has come later. store: a folder that all workers reach, for captured documents; None: each
    machine's prefix cache, and workers ask each other. together: agents that batched packs into one task. exact: only
    workers with the same llama.cpp for the same instruction set take part; False: the last bits may differ.
    n_threads: by default each worker's share of its machine. on_token(agent, token) is called as tokens come (from an
    Executor only when an agent has ended). callback: called with the run when something has come in; what it raises
    ends the run, as an interrupt does: nothing goes on in the workers.
    An agent that fails, or whose worker dies each time, is in the run's ``errors``; the others' answers are whole.
    Raises SnapshotMismatchError when no worker has the model, and SwarmKVError when the scheduler or all workers are
    gone, or an Executor has lost a process.
    """
    chosen = _in_cluster(strategy)
    whole_number("together", together, 1, MAX_SEQUENCES - 1)
    recorder = Recorder()
    source, known = _source(model_source)
    prefix = _tokens(tokens)
    with opened(client) as engine:
        coordinator = Coordinator(engine, recorder, exact=exact)
        standing = coordinator.crew.gather(source, n_gpu_layers, known)
        asked = ContextSettings.of(n_ctx=n_ctx, **settings)
        job = Job(
            source,
            n_gpu_layers,
            standing,
            prefix,
            chosen.name,
            asked,
            _store(store),
            tells=bool(on_token or callback or progress),
        )
        asked_of = job, agents, max_tokens, together
        if isinstance(model_source, Model):
            job = tasks.prepared(model_source, *asked_of)
        else:
            ((_, job),) = coordinator.crew.each(tasks.prepare, [asked_of])
        branches = [Branch(name, prompt, max_tokens, sampling, len(prefix)) for name, prompt in job.prompts.items()]
        schedule = Schedule(branches, tolerant=True)
        run = ClusterRun(schedule, chosen.name, chosen.packs, recorder, job, coordinator)
        total = max_tokens * len(branches)
        with tqdm(total=total, unit="token", desc=chosen.name, disable=None if progress else True) as bar:

            def changed() -> None:
                ended = sum(branch.name in coordinator.texts or branch.error is not None for branch in branches)
                bar.set_postfix_str(f"{ended} of {len(branches)} agents", refresh=False)
                told = sum(max_tokens if b.name in coordinator.texts else len(b.tokens) for b in branches)
                bar.update(told - bar.n)
                if callback:
                    callback(run)

            coordinator.run(job, schedule, run.prefix_lane, together=together, on_token=on_token, changed=changed)
    return run


def on(client: Any, strategy: str | Strategy) -> Strategy:
    """A strategy whose agents are answered on a cluster, for Pipeline.run and wherever a Strategy is taken."""
    chosen = _in_cluster(strategy)

    def answer(run: Run) -> None:
        with opened(client) as engine:
            coordinator = Coordinator(engine, run.recorder)
            n_gpu_layers = -1 if run.model.on_gpu else 0
            source = str(run.model.path.absolute())
            standing = coordinator.crew.gather(source, n_gpu_layers, run.model.content_hash)
            job = Job(source, n_gpu_layers, standing, run.tokens, chosen.name, run.settings, None)

            def changed() -> None:
                if run.callback:
                    run.callback(run)

            coordinator.run(job, run.schedule, run.prefix_lane, on_token=run.on_token, changed=changed)

    return replace(chosen, answer=answer, threaded=False)


def _in_cluster(strategy: str | Strategy) -> Strategy:
    chosen = strategy_named(strategy)
    if chosen.name not in STRATEGIES:
        raise SwarmKVError(f"{chosen.name} runs in this process alone; on a cluster: {', '.join(STRATEGIES)}")
    return chosen


def _tokens(tokens: Any) -> np.ndarray:
    """Token ids as int32 (n,); whether the model has them, the workers say."""
    row = np.asarray(tokens)
    span = np.iinfo(np.int32)
    if row.ndim != 1 or row.dtype.kind not in "iu" or not row.size or row.min() < span.min or row.max() > span.max:
        raise SwarmKVError(
            f"tokens is {tokens!r:.60} ({type(tokens).__name__}): give one row of token ids, at least one, as "
            "model.tokenize returns"
        )
    return row.astype(np.int32)


def _store(place: str | Path | None) -> str | None:
    """The same place for processes in other folders."""
    return None if place is None else str(user_path(place).absolute())


def _source(source: "str | Model | None") -> tuple[str | None, str | None]:
    """(what workers are told, the model's hash where the file is here too)."""
    if isinstance(source, Model):
        return str(source.path.absolute()), source.content_hash
    try:
        path = model_path(source)
    except ModelNotFoundError:  # the workers may have it
        return (None if source is None else str(source)), None
    is_file = source is not None and user_path(source).is_file()
    return (str(path.absolute()) if is_file else source), content_hash(path)
