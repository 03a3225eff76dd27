"""Schedule: which agents can answer when, as the document's prefill advances and other agents' answers come in."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

import numpy as np

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama import Sampling

Graph = Mapping[str, Sequence[str]]
"""{an agent's name: the names of those whose answers it reads}"""


@dataclass(eq=False)
class Branch:
    """An agent's part of a run: the tokens of its branch, and its answer once there is one."""

    name: str
    prompt: np.ndarray
    """int32 (n,): tokens that follow the prefix"""
    max_tokens: int
    sampling: Sampling
    n_prefix: int
    """tokens of the document that it reads: its watermark"""
    logits: np.ndarray | None = None
    """float32 (n_vocab,): the first ones after the prompt"""
    tokens: list[int] = field(default_factory=list)
    """the answer"""
    error: SwarmKVError | None = None
    """why there is none"""


class Schedule:
    """Agents, those that each comes ``after``, and how its prompt is ``prepared`` from their answers.

    An agent is ready once the prefill has reached its watermark and all before it have ended. When one fails, those
    after it fail with it, and the others go on; without ``tolerant`` the first error is raised instead.
    """

    def __init__(
        self,
        agents: Sequence[Branch],
        after: Graph | None = None,
        prepare: Callable[[Branch], None] = lambda agent: None,
        *,
        tolerant: bool = False,
    ) -> None:
        self.agents = {agent.name: agent for agent in agents}
        self.after = dict(after or {})
        self.tolerant = tolerant
        self._prepare = prepare

    def ready(self, advance: Callable[[int], None]) -> Iterator[list[Branch]]:
        """Groups of agents that can answer now. ``advance(n)`` prefills the document to n tokens, when nobody can."""
        sorter = TopologicalSorter({name: self.after.get(name, ()) for name in self.agents})
        sorter.prepare()
        able: list[Branch] = []
        n_prefilled = 0
        while sorter.is_active():
            able += [self.agents[name] for name in sorter.get_ready()]
            now = [agent for agent in able if agent.n_prefix <= n_prefilled]
            if not now:
                # also at the watermarks of those that are not able yet: a snapshot is captured as the prefill passes
                n_prefilled = min(n for agent in self.agents.values() if (n := agent.n_prefix) > n_prefilled)
                advance(n_prefilled)
                continue
            for agent in now:
                self._begin(agent)
            if live := [agent for agent in self.agents.values() if agent in now and agent.error is None]:
                yield live
            able = [agent for agent in able if agent not in now]
            sorter.done(*(agent.name for agent in now))

    def _begin(self, agent: Branch) -> None:
        for name in self.after.get(agent.name, ()):
            if error := self.agents[name].error:
                agent.error = SwarmKVError(f"{agent.name} comes after {name}, and {error}")
                return
        try:
            self._prepare(agent)
        except SwarmKVError as error:
            self.fail(agent, error)

    def fail(self, agent: Branch, error: SwarmKVError) -> None:
        """An agent has no answer: it is noted, or raised where nobody tolerates it."""
        if not self.tolerant:
            raise error
        agent.error = SwarmKVError(f"{agent.name} failed: {error}")
        agent.error.__cause__ = error


def check(names: Sequence[str], after: Graph) -> None:
    """Raise SwarmKVError for agents of the same name, unknown ones, and those that wait for themselves."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise SwarmKVError(f"{', '.join(twice)}: each agent needs a name of its own")
    for name, others in after.items():
        unknown = [other for other in others if other not in names]
        if unknown:
            raise SwarmKVError(f"{name} comes after {', '.join(unknown)}, and the agents are {', '.join(names)}")
    try:
        TopologicalSorter(after).prepare()
    except CycleError as error:
        raise SwarmKVError(f"agents wait for each other: {' after '.join(reversed(error.args[1]))}") from error
