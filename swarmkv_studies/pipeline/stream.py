"""The stream: the answers of a pipeline's agents, live."""

import ipywidgets
import pandas as pd

from swarmkv_lab.fanout.pipeline import Pipeline
from swarmkv_lab.fanout.run import Run
from swarmkv_studies.common.style import STRATEGY
from swarmkv_studies.common.widgets.explorer import LOOK, html_table
from swarmkv_studies.common.widgets.live import Live


class Stream(Live):
    """Runs a pipeline with a strategy; shows the growing timeline, and every agent's answer token by token.

    ``run``: the run, or None before the first one.
    """

    name = "pipeline"

    def __init__(self, pipeline: Pipeline, strategy: str = "batched") -> None:
        self.pipeline = pipeline
        self.run: Run | None = None
        self.strategy = ipywidgets.Dropdown(options=list(STRATEGY), value=strategy, description="Strategy", **LOOK)
        super().__init__([self.strategy], "pipeline")
        children = [child for child in self.children if child is not self.answers]
        at = children.index(self.picture)  # what grows token by token is read, so it comes first
        self.children = [*children[:at], self.answers, *children[at:]]

    def timelines(self) -> dict[str, pd.DataFrame]:
        """The timeline of the run."""
        return {} if self.run is None or self.run.timeline.empty else {self.run.strategy: self.run.timeline}

    def data(self) -> pd.DataFrame:
        """The timeline so far, a row per span. Raises SwarmKVError before the first run."""
        return super().data().drop(columns="strategy")

    def work(self) -> None:
        """Run the pipeline once."""
        tokens: dict[str, list[int]] = {agent.name: [] for agent in self.pipeline.agents}
        most = sum(agent.max_tokens for agent in self.pipeline.agents)

        def callback(run: Run) -> None:
            if self.run is not run:
                self.run = run
                self.begin()
                self._show(tokens)
            self.look()

        def on_token(name: str, token: int) -> None:
            with self.run.recorder.stopped():
                tokens[name].append(token)
                self.progress.value = sum(map(len, tokens.values())) / most
                self._show(tokens)

        self.run = self.pipeline.run(self.strategy.value, on_token=on_token, callback=callback)
        self.progress.value = 1
        self.redraw()
        for error in self.run.errors.values():
            raise error

    def report(self) -> None:
        """The strategy, and how many tokens of answers there are."""
        answered = sum(len(branch.tokens) for branch in self.run.branches)
        most = sum(branch.max_tokens for branch in self.run.branches)
        self.say(f"{self.run.strategy} is running: {answered:,} of at most {most:,} tokens of answers")

    def _show(self, tokens: dict[str, list[int]]) -> None:
        said = [(name, self.pipeline.model.detokenize(answer)) for name, answer in tokens.items()]
        self.answers.value = html_table(said, "The agents' answers")


stream = Stream
