"""Pipeline: a graph of agents over one document; each begins as soon as what it reads is there."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.fanout import schedule
from swarmkv_lab.fanout.fan_out import Prompt, budget, tokens_of
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.strategies import STRATEGIES, Strategy, strategy_named
from swarmkv_lab.fanout.timeline import critical_path_ms
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import GREEDY, Sampling
from swarmkv_lab.llama.settings import ContextSettings


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

    def __post_init__(self) -> None:
        schedule.require_name(self.name)
        if isinstance(self.after, str) or not isinstance(self.after, Iterable):
            raise SwarmKVError(f"{self.name}: after={self.after!r}, and it is a list of agents' names")
        if not isinstance(self.sampling, Sampling):
            raise SwarmKVError(f"{self.name}: sampling={self.sampling!r}, and it is a Sampling")


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
        whole = len(self.tokens)
        self.watermarks = {
            agent.name: whole if agent.prefix_tokens is None else agent.prefix_tokens for agent in self.agents
        }
        """tokens of the document that each agent reads"""
        for agent in self.agents:
            whole_number(f"{agent.name}: prefix_tokens", self.watermarks[agent.name], 1, whole)
            whole_number(f"{agent.name}: max_tokens", agent.max_tokens)
        self._asked = {agent.name: tokens_of(model, agent.prompt) for agent in self.agents}

    def waiting(self) -> "Pipeline":
        """The same agents without watermarks: nobody begins before the whole document is read."""
        return Pipeline(self.model, self.tokens, [replace(agent, prefix_tokens=None) for agent in self.agents])

    def critical_path_ms(self, run: Run) -> float:
        """What a run of this would have taken, had every agent and the prefill a machine of their own, ms.

        The longest way through the graph; where agents were packed into one decode, each is charged its share of it.
        """
        marks = {branch.name: branch.n_prefix for branch in run.branches}  # of those that ran
        return critical_path_ms(run.timeline, run.schedule.after, marks, run.prefix_lane)

    def run(
        self,
        strategy: str | Strategy = "batched",
        *,
        n_ctx: int | None = None,
        on_token: Callable[[str, int], None] | None = None,
        callback: Callable[[Run], None] | None = None,
        threads: int = 1,
        given: Mapping[str, Prompt] = {},
        **settings: Any,
    ) -> Run:
        """Every agent's answer, by one of STRATEGIES; arguments as in fan_out.

        given: answers, in words or token ids, of agents that are not run: those after them read these instead.
        on_token(agent's name, token id) is called for each token of an answer; what it raises is that agent's failure.
        An agent that fails is in the run's ``errors``, as are those after it; the others' answers are whole.
        threads: so many agents work at the same time, where each has a context of its own (naive, swarmkv). They take
        turns at the model's guard, unless it was loaded with guard_per_context=True: then n_threads is best their share
        of the cores. on_token is called in their threads.
        """
        chosen = strategy_named(strategy)
        whole_number("threads", threads, 1)
        if threads > 1 and not chosen.threaded:
            able = " or ".join(one.name for one in STRATEGIES.values() if one.threaded)
            raise SwarmKVError(
                f"threads={threads} with {chosen.name}: it must be 1, or more with {able}, whose agents have contexts "
                "of their own"
            )
        known = self._known(given)
        asked_now = [agent for agent in self.agents if agent.name not in known]
        lengths = {agent.name: self._longest(agent, known) + agent.max_tokens for agent in asked_now}
        asked = ContextSettings.of(n_ctx=n_ctx, **settings)
        branches = [
            schedule.Branch(
                agent.name, np.empty(0, np.int32), agent.max_tokens, agent.sampling, self.watermarks[agent.name]
            )
            for agent in asked_now
        ]
        after = {agent.name: [name for name in agent.after if name not in known] for agent in asked_now}
        plan = schedule.Schedule(branches, after, lambda branch: self._prepare(branch, plan, known), tolerant=True)
        run = Run(
            self.model,
            self.tokens,
            plan,
            chosen.name,
            budget(self.model, chosen, len(self.tokens), lengths, 0, asked),
            packed=chosen.packs,
            callback=callback,
            on_token=on_token,
            threads=threads,
        )
        chosen.answer(run)
        return run.ended()

    def _heading(self, name: str) -> np.ndarray:
        """What stands before an answer that another agent reads; nothing where there is no vocabulary (a twin)."""
        return (
            self.model.tokenize(f"\n\n{name}: ", add_bos=False) if self.model.has_vocabulary else np.empty(0, np.int32)
        )

    def require_known(self, given: Mapping[str, Any]) -> None:
        """Raise SwarmKVError unless these are names of agents, but not of all."""
        names = [agent.name for agent in self.agents]
        if unknown := [str(name) for name in given if name not in names]:
            raise SwarmKVError(f"given has an answer of {', '.join(unknown)}, and the agents are {', '.join(names)}")
        if len(given) == len(names):
            raise SwarmKVError("the answers of all agents are given: there is nothing to run")

    def _known(self, given: Mapping[str, Prompt]) -> dict[str, np.ndarray]:
        """The tokens of the answers that are given, checked; an answer may be empty."""
        self.require_known(given)

        def tokens(answer: Prompt) -> np.ndarray:
            if isinstance(answer, str):
                return self.model.tokenize(answer, add_bos=False)
            return self.model.check_tokens(answer) if len(answer) else np.empty(0, np.int32)

        return {name: tokens(answer) for name, answer in given.items()}

    def _longest(self, agent: Agent, known: Mapping[str, np.ndarray]) -> int:
        """Tokens of a prompt when all before it use all that they may."""
        most = {other.name: other.max_tokens for other in self.agents} | {name: len(ids) for name, ids in known.items()}
        return len(self._asked[agent.name]) + sum(len(self._heading(name)) + most[name] for name in agent.after)

    def _prepare(self, branch: schedule.Branch, plan: schedule.Schedule, known: Mapping[str, np.ndarray]) -> None:
        """A branch's prompt: the answers of those before it, in the order that it names them, then its question."""
        parts: list[np.ndarray] = []
        for name in self.after[branch.name]:
            answer: Sequence[int] | np.ndarray = known[name] if name in known else plan.branches[name].tokens
            parts += [self._heading(name), self.model.without_control(answer)]
        branch.prompt = np.concatenate([*parts, self._asked[branch.name]]).astype(np.int32)
