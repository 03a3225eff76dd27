"""Pace: how far a race is, in tokens, and how long the rest will take."""

import time
from collections import Counter
from collections.abc import Sequence

from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.strategies import STRATEGIES


class Pace:
    """Counts the tokens that the strategies read and answer; ``count`` is called before each llama_decode of a run.

    depth: tokens of the document, max_tokens: of an answer. ``done``: the share of the race's tokens, 0 to 1.
    """

    def __init__(self, names: Sequence[str], depth: int, n_agents: int, max_tokens: int) -> None:
        self.to_read = {name: depth * (n_agents if STRATEGIES[name].is_baseline else 1) for name in names}
        self.to_answer = n_agents * max_tokens
        self.done = 0.0
        self._depth = depth
        self._read = self._answered = 0
        self._batches: Counter[tuple[str, int]] = Counter()  # by strategy and prefill
        self._start: float | None = None

    def count(self, run: Run) -> None:
        """See how far the run is that is going on."""
        self._start = self._start or time.monotonic()  # now: a warm-up came before
        finished, so_far = (
            sum(span.phase == "prefill" for span in spans) for spans in (run.recorder.spans, run.recorder.so_far())
        )
        prefill = run.strategy, finished
        read = finished * self._depth + self._batches[prefill] * run.settings.n_batch  # the last batch may be shorter
        self._read = min(read, self.to_read[run.strategy])
        self._batches[prefill] += so_far > finished
        self._answered = sum(len(branch.tokens) for branch in run.branches)
        before = list(self.to_read)[: list(self.to_read).index(run.strategy)]
        tokens = sum(self.to_read[name] + self.to_answer for name in before) + self._read + self._answered
        self.done = tokens / (sum(self.to_read.values()) + len(self.to_read) * self.to_answer)

    def words(self, strategy: str) -> str:
        """The strategy that is running, its tokens so far, and about how long the race will go on."""
        seconds = time.monotonic() - self._start
        left = f"; about {seconds * (1 / self.done - 1):,.0f} s left" if self.done else ""
        return (
            f"{strategy} is running: {self._read:,} of {self.to_read[strategy]:,} tokens prefilled, "
            f"{self._answered:,} of at most {self.to_answer:,} answered{left}"
        )
