"""Rounds of a grid measured by a cluster's workers: each round as a whole by one of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from swarmkv_lab.cluster.clients import opened
from swarmkv_lab.cluster.crew import Crew
from swarmkv_lab.cluster.links import Link
from swarmkv_lab.cluster.resident import RESIDENT, in_one_thread
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.recorder import Recorder
from swarmkv_lab.fanout.strategies import STRATEGIES
from swarmkv_lab.llama.sampling import Sampling
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_studies.common.provenance import environment
from swarmkv_studies.common.rounds import Plan, Round, measure, record


@dataclass(frozen=True)
class _Asked:
    """A Plan on its way to a worker."""

    source: str
    n_gpu_layers: int
    prefix: np.ndarray
    prompts: dict[str, np.ndarray]
    strategies: list[str]
    max_tokens: int
    sampling: Sampling
    settings: ContextSettings

    def plan(self, link: Link) -> Plan:
        """The plan there."""
        model = RESIDENT.model(self.source, self.n_gpu_layers)
        settings = replace(self.settings, n_threads=self.settings.n_threads or link.n_threads())
        chosen = [STRATEGIES[name] for name in self.strategies]
        stop = lambda run: link.require_wanted()  # noqa: E731
        return Plan(model, self.prefix, self.prompts, chosen, self.max_tokens, self.sampling, settings, stop)


class Elsewhere:
    """Workers that are alike. ``environment``: theirs, as provenance.environment describes it."""

    def __init__(self, crew: Crew, asked: _Asked) -> None:
        self._crew, self._asked = crew, asked
        (_, self.environment), *_ = crew.each(_describe, [(asked,)])

    def records(self, rounds: Sequence[Round]) -> Iterator[tuple[Round, list[dict[str, Any]]]]:
        """Each round's runs as flat records, in the order in which they are done."""
        for i, records in self._crew.each(_measure, [(self._asked, this) for this in rounds]):
            yield rounds[i], records


@contextmanager
def elsewhere(client: Any, plan: Plan) -> Iterator[Elsewhere]:
    """The workers of a Dask client or an Executor, for a plan's rounds.

    Raises SwarmKVError for strategies that are not the lab's own, and for a callback, which cannot travel.
    """
    others = [strategy.name for strategy in plan.strategies if STRATEGIES.get(strategy.name) is not strategy]
    if others or plan.callback:
        raise SwarmKVError(f"{', '.join(others) or 'a callback'} cannot be sent to other processes: leave it out")
    n_gpu_layers = -1 if plan.model.on_gpu else 0
    source = str(plan.model.path.absolute())
    asked = _Asked(
        source, n_gpu_layers, plan.prefix, dict(plan.prompts), [one.name for one in plan.strategies],
        plan.max_tokens, plan.sampling, plan.settings,
    )  # fmt: skip
    with opened(client) as engine:
        crew = Crew(engine, Recorder(), alike=True)
        crew.gather(asked.source, n_gpu_layers, plan.model.content_hash)
        yield Elsewhere(crew, asked)


@in_one_thread
def _describe(link: Link, asked: _Asked) -> dict[str, Any]:
    with RESIDENT.lock:
        plan = asked.plan(link)
        return environment(plan.model, plan.settings)


@in_one_thread
def _measure(link: Link, asked: _Asked, this: Round) -> list[dict[str, Any]]:
    with RESIDENT.lock:
        RESIDENT.let_go()
        return [record(*measured) for measured in measure(asked.plan(link), [this], progress=False)]
