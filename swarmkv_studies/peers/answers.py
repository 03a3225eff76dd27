"""A peer's part of a run: what it is asked with, and what it answers."""

from collections.abc import Iterable
from itertools import islice, takewhile

from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch


def whole_prompt(run: Run, branch: Branch) -> list[int]:
    """The document's tokens and the agent's: what somebody who knows of no prefix is given."""
    return [*run.tokens[: branch.n_prefix].tolist(), *branch.prompt.tolist()]


def take_all(run: Run, branch: Branch, tokens: Iterable[int]) -> None:
    """An answer from the tokens that a peer would give, until the model ends its turn or max_tokens are out."""
    until_end = takewhile(lambda token: not run.model.is_eog(token), tokens)
    branch.tokens += islice(until_end, branch.max_tokens)
