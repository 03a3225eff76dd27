"""Pipeline: a graph of agents over one document; each begins as soon as what it reads is there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from typing import Any

import numpy as np

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout import run, schedule
from swarmkv_lab.fanout.fan_out import Prompt, budget, strategy_named
from swarmkv_lab.fanout.report import PREFIX
from swarmkv_lab.fanout.strategies import THREADED, Strategy
from swarmkv_lab.llama import GREEDY, Model, Sampling


@dataclass(frozen=True)
class Agent:
    """A stage of a pipeline.

    ``after``: the agents whose answers stand before its own prompt. ``prefix_tokens``: its watermark, so many tokens of
    the document are all it reads, and it begins when they are prefilled; None for the whole document.
    """

    name: str
    prompt: Prompt
    """a question in words (the model's chat template is put around it) or token ids"""
    after: Sequence[str] = ()
    prefix_tokens: int | None = None
    max_tokens: int = 64
    sampling: Sampling = GREEDY


class Pipeline:
    """Agents over one document, as a graph: whoever comes ``after`` others reads their answers.

    document: a text, which the model's chat template opens the user's turn for, or token ids as they are.
    Raises SwarmKVError, before anything runs, for agents of one name, unknown ones or a cycle, and for watermarks
    outside the document.
    """

    def __init__(self, model: Model, document: str | Sequence[int] | np.ndarray, agents: Sequence[Agent]) -> None:
        self.model = model
        self.tokens = model.read(document) if isinstance(document, str) else model.check_tokens(document)
        self.agents = list(agents)
        if not self.agents:
            raise SwarmKVError("a pipeline needs at least one agent")
        self.after: schedule.Graph = {agent.name: tuple(agent.after) for agent in self.agents}
        schedule.check([agent.name for agent in self.agents], self.after)
        for agent in self.agents:
            if not 1 <= self._n_prefix(agent) <= len(self.tokens):
                raise SwarmKVError(
                    f"{agent.name}: prefix_tokens={agent.prefix_tokens:,}, and the document has {len(self.tokens):,}"
                )
            if agent.max_tokens < 0:
                raise SwarmKVError(f"{agent.name}: max_tokens={agent.max_tokens}, it must be at least 0")
        self._asked = {agent.name: self._ask(agent.prompt) for agent in self.agents}

    @property
    def watermarks(self) -> dict[str, int]:
        """Tokens of the document that each agent reads."""
        return {agent.name: self._n_prefix(agent) for agent in self.agents}

    def waiting(self) -> "Pipeline":
        """The same agents without watermarks: nobody begins before the whole document is read."""
        return Pipeline(self.model, self.tokens, [replace(agent, prefix_tokens=None) for agent in self.agents])

    def critical_path_ms(self, this: "run.Run") -> float:
        """What a run of this would have taken, had every agent and the prefill a machine of their own.

        The longest way through the graph: the prefill to an agent's watermark, its own work, that of those after it.
        """
        spans = this.timeline.assign(ms=this.timeline.end_ms - this.timeline.start_ms)
        prefix = spans[spans.agent == PREFIX]
        own = spans[spans.agent != PREFIX].groupby("agent").ms.sum()
        # a prefill ends at each watermark; naive's are the agents' own
        read = prefix.ms.cumsum()[prefix.phase == "prefill"]
        ready = dict(zip(sorted(set(self.watermarks.values())), read, strict=False))
        done: dict[str, float] = {}
        for name in TopologicalSorter(self.after).static_order():
            begin = max([ready.get(self.watermarks[name], 0.0), *(done[other] for other in self.after[name])])
            done[name] = begin + own.get(name, 0.0)
        return max(done.values())

    def run(
        self,
        strategy: str | Strategy = "batched",
        *,
        n_ctx: int | None = None,
        on_token: Callable[[str, int], None] | None = None,
        watch: "Callable[[run.Run], None] | None" = None,
        threads: int = 1,
        **settings: Any,
    ) -> "run.Run":
        """Every agent's answer, by one of STRATEGIES; arguments as in fan_out.

        on_token(agent's name, token id) is called for each token of an answer; what it raises is that agent's failure.
        An agent that fails is in the run's ``errors``, as are those after it; the others' answers are whole.
        threads: so many agents work at the same time, where each has a context of its own (naive, swarmkv). They take
        turns at the model's guard, unless it was loaded with guard_per_context=True: then n_threads is best their share
        of the cores. on_token is called in their threads.
        """
        answer = strategy_named(strategy)
        if threads < 1 or (threads > 1 and answer.__name__ not in THREADED):
            raise SwarmKVError(
                f"threads={threads} with {answer.__name__}: it must be 1, or more with {' or '.join(THREADED)}, whose "
                "agents have contexts of their own"
            )
        lengths = {agent.name: self._longest(agent) + agent.max_tokens for agent in self.agents}
        settings["n_ctx"] = budget(self.model, answer.__name__, len(self.tokens), lengths, 0, n_ctx)
        branches = [
            run.Branch(agent.name, np.empty(0, np.int32), agent.max_tokens, agent.sampling, self._n_prefix(agent))
            for agent in self.agents
        ]
        plan = schedule.Schedule(branches, self.after, lambda agent: self._prepare(agent, plan), tolerant=True)
        this = run.Run(
            self.model, self.tokens, plan, answer.__name__, settings, watch, on_token=on_token, threads=threads
        )
        answer(this)
        return this

    def _n_prefix(self, agent: Agent) -> int:
        return len(self.tokens) if agent.prefix_tokens is None else agent.prefix_tokens

    def _ask(self, prompt: Prompt) -> np.ndarray:
        return self.model.ask(prompt) if isinstance(prompt, str) else self.model.check_tokens(prompt)

    def _heading(self, name: str) -> np.ndarray:
        """What stands before an answer that another agent reads; nothing where there is no vocabulary (a twin)."""
        return (
            self.model.tokenize(f"\n\n{name}: ", add_bos=False) if self.model.has_vocabulary else np.empty(0, np.int32)
        )

    def _longest(self, agent: Agent) -> int:
        """Tokens of a prompt when all before it use all that they may."""
        most = {other.name: other.max_tokens for other in self.agents}
        return len(self._asked[agent.name]) + sum(len(self._heading(name)) + most[name] for name in agent.after)

    def _prepare(self, agent: "run.Branch", plan: schedule.Schedule) -> None:
        """An agent's prompt: the answers of those before it, in its words' order, then its question."""
        parts: list[np.ndarray] = []
        for name in self.after[agent.name]:
            parts += [self._heading(name), np.array(plan.agents[name].tokens, np.int32)]
        agent.prompt = np.concatenate([*parts, self._asked[agent.name]]).astype(np.int32)
