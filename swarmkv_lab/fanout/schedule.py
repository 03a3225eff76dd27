"""Schedule: which agents can answer when, as the document's prefill advances and other agents' answers come in."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

import numpy as np

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.recorder import PREFIX
from swarmkv_lab.llama.sampling import GREEDY, Sampling

Graph = Mapping[str, Sequence[str]]
"""{an agent's name: the names of those whose answers it reads}"""
NO_TOKENS = np.empty(0, np.int32)


@dataclass(eq=False)
class Branch:
    """An agent's part of a run: the tokens of its branch, and its answer once there is one."""

    name: str
    prompt: np.ndarray  # int32 (n,): tokens that follow the prefix
    max_tokens: int = 0
    sampling: Sampling = GREEDY
    n_prefix: int = 0  # tokens of the document that it reads: its watermark
    head: np.ndarray = field(default_factory=lambda: NO_TOKENS)  # int32 (n,): tokens before the document
    after: Sequence[str] = ()  # the names of those whose answers it reads
    read: Callable[[], np.ndarray] | None = None  # its prompt once they are there, if it is another one
    computed: int = 0  # prompt tokens that were decoded for it alone
    logits: np.ndarray | None = None  # float32 (n_vocab,): the first ones after the prompt
    tokens: list[int] = field(default_factory=list)  # the answer
    text: str | None = None  # of the answer, once the run has ended
    error: SwarmKVError | None = None  # why there is none


class Schedule:
    """Branches by name. One is ready once the prefill has reached its watermark and all that it comes after have ended.

    When one fails, those after it fail with it, and the others go on; without ``tolerant`` the error is raised instead.
    """

    def __init__(self, branches: Sequence[Branch], *, tolerant: bool = False) -> None:
        self.branches = {branch.name: branch for branch in branches}
        self.tolerant = tolerant

    def ready(self, advance: Callable[[int], None] = lambda n_tokens: None) -> Iterator[list[Branch]]:
        """Groups of branches that can answer now. ``advance(n)`` prefills the document to n tokens, when none can."""
        sorter = TopologicalSorter({name: branch.after for name, branch in self.branches.items()})
        sorter.prepare()
        able: set[str] = set()
        n_prefilled = 0
        while sorter.is_active():
            able.update(sorter.get_ready())
            now = [branch for name, branch in self.branches.items() if name in able and branch.n_prefix <= n_prefilled]
            if not now:
                # also at the watermarks of those that are not able yet: a snapshot is captured as the prefill passes
                n_prefilled = min(n for branch in self.branches.values() if (n := branch.n_prefix) > n_prefilled)
                advance(n_prefilled)
            for branch in now:
                with self.attempt(branch):
                    self._begin(branch)
            if live := [branch for branch in now if branch.error is None]:
                yield live
            done = [branch.name for branch in now]
            able.difference_update(done)
            sorter.done(*done)

    def turns(self, advance: Callable[[int], None] = lambda n_tokens: None) -> Iterator[Branch]:
        """The same branches, one after another."""
        for branches in self.ready(advance):
            yield from branches

    def fail(self, branch: Branch, error: SwarmKVError) -> None:
        """A branch has no answer: it is noted, or raised where nobody tolerates it."""
        if not self.tolerant:
            raise error
        branch.error = SwarmKVError(f"{branch.name} failed: {error}")
        branch.error.__cause__ = error

    @contextmanager
    def attempt(self, branch: Branch) -> Iterator[None]:
        """A branch's work: an error in it is this branch's alone."""
        try:
            yield
        except SwarmKVError as error:
            self.fail(branch, error)

    def _begin(self, branch: Branch) -> None:
        """Give a branch its prompt, all before it having ended. Raises SwarmKVError if one of them has failed."""
        for name in branch.after:
            if error := self.branches[name].error:
                raise SwarmKVError(f"it comes after {name}, and {error}")
        if branch.read:
            branch.prompt = branch.read()


def check(names: Sequence[str], after: Graph) -> None:
    """Raise SwarmKVError for names that are no text, taken or PREFIX, and for agents that wait for themselves."""
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise SwarmKVError(f"an agent's name is text, and {wrong[0]!r} is not")
    if PREFIX in names:
        raise SwarmKVError(f"{PREFIX!r} is what is done for all agents in a timeline: give that agent another name")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SwarmKVError(f"{', '.join(twice)}: each agent needs a name of its own")
    for name, others in after.items():
        if unknown := [str(other) for other in others if other not in names]:
            raise SwarmKVError(f"{name} comes after {', '.join(unknown)}, and the agents are {', '.join(names)}")
    try:
        TopologicalSorter(after).prepare()
    except CycleError as error:
        raise SwarmKVError(f"agents wait for each other: {' after '.join(reversed(error.args[1]))}") from error
