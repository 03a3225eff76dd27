"""Pipeline: a graph of agents over one document; each begins as soon as what it reads is there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.fanout.fan_out import Prompt, answered, budget, tokens_of
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import NO_TOKENS, Branch, Graph, Schedule, check
from swarmkv_lab.fanout.strategies import Strategy, strategy_named
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
    prompt: Prompt  # a question in words (the model's chat template is put around it) or token ids
    after: Sequence[str] = ()
    prefix_tokens: int | None = None
    max_tokens: int = 64
    sampling: Sampling = GREEDY

    def __post_init__(self) -> None:
        if isinstance(self.after, str):
            raise SwarmKVError(f"{self.name}: after={self.after!r}, and it is a list of agents' names")
        object.__setattr__(self, "after", tuple(self.after))


class Pipeline:
    """Agents over one document, as a graph: whoever comes ``after`` others reads their answers.

    document: a text, which the model's chat template opens the user's turn for, or token ids as they are.
    Raises SwarmKVError, before anything runs, for agents of one name, unknown ones or a cycle, and for watermarks
    outside the document.
    """

    def __init__(self, model: Model, document: str | Sequence[int] | np.ndarray, agents: Sequence[Agent]) -> None:
        self.model = model
        self.tokens = model.prefix(document)
        self.agents = list(agents)
        if not self.agents:
            raise SwarmKVError("a pipeline needs at least one agent")
        self.after: Graph = {agent.name: agent.after for agent in self.agents}
        check([agent.name for agent in self.agents], self.after)
        whole = len(self.tokens)
        self.watermarks = {one.name: whole if one.prefix_tokens is None else one.prefix_tokens for one in self.agents}
        """tokens of the document that each agent reads"""
        self._questions, self._headings = dict[str, np.ndarray](), dict[str, np.ndarray]()
        for agent in self.agents:
            whole_number(f"{agent.name}: prefix_tokens", self.watermarks[agent.name], 1, whole)
            whole_number(f"{agent.name}: max_tokens", agent.max_tokens)
            self._questions[agent.name] = tokens_of(model, agent.prompt)
            # what stands before its answer where another agent reads it; nothing without a vocabulary (a twin)
            has_words, heading = model.has_vocabulary, f"\n\n{agent.name}: "
            self._headings[agent.name] = model.tokenize(heading, continued=True) if has_words else NO_TOKENS

    def run(
        self,
        strategy: str | Strategy = "batched",
        *,
        on_token: Callable[[str, int], None] | None = None,
        callback: Callable[[Run], None] | None = None,
        **settings: Any,
    ) -> Run:
        """Every agent's answer, by one of STRATEGIES; arguments as in fan_out.

        on_token(agent's name, token id) is called for each token of an answer; what it raises is that agent's failure.
        An agent that fails is in the run's ``errors``, as are those after it; the others' answers are whole.
        """
        chosen = strategy_named(strategy)
        most = {agent.name: len(self._headings[agent.name]) + agent.max_tokens for agent in self.agents}
        answers, lengths, branches = dict[str, list[int]](), {}, []
        for one in self.agents:
            question, n_prefix = self._questions[one.name], self.watermarks[one.name]
            lengths[one.name] = sum(most[other] for other in one.after) + len(question) + one.max_tokens
            how: dict[str, Any] = {"after": one.after, "read": partial(self._prompt, one, answers)}
            branches.append(Branch(one.name, question, one.max_tokens, one.sampling, n_prefix, **how))
            answers[one.name] = branches[-1].tokens  # a list that grows
        sized = budget(self.model, chosen, len(self.tokens), lengths, 0, ContextSettings(**settings))
        about: dict[str, Any] = {"on_token": on_token, "callback": callback}
        return answered(self.model, self.tokens, Schedule(branches, tolerant=True), chosen, sized, **about)

    def _prompt(self, agent: Agent, answers: Mapping[str, Sequence[int]]) -> np.ndarray:
        """The answers of those before an agent, in the order that it names them, then its question: int32 (n,)."""
        read = [(self._headings[other], self.model.without_control(answers[other])) for other in agent.after]
        return np.concatenate([*chain(*read), self._questions[agent.name]]).astype(np.int32)
