"""The race: run strategies one after another on a document and your own questions, live."""

import ipywidgets
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.documents import load_agents, load_document
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.strategies import STRATEGIES
from swarmkv_lab.llama.loading import load_model
from swarmkv_lab.llama.model import Model
from swarmkv_lab.measure.grid import measure, plan, rounds
from swarmkv_lab.widgets.explorer import LOOK, StrategyBoxes, html_table, row
from swarmkv_lab.widgets.live import Live

_DEPTHS = (128, 256, 512, 1024, 2048, 3501, 5000, 7000)


class Race(Live):
    """Choose document, depth, questions and strategies; Run shows the growing timeline and the answers side by side.

    ``runs``: the finished runs by strategy. A model that is not given is loaded at the first run.
    """

    name = "race"

    def __init__(self, model: Model | None = None, depth: int = 512) -> None:
        self.model = model
        self.runs: dict[str, Run] = {}
        self._live: Run | None = None
        self.document = ipywidgets.Dropdown(options=["dossier", "article"], description="Document", **LOOK)
        options = [(f"{n:,}", n) for n in _DEPTHS]
        self.depth = ipywidgets.SelectionSlider(options=options, value=depth, description="Depth, tokens", **LOOK)
        self.questions = ipywidgets.Textarea(
            value="\n".join(list(load_agents("dossier").values())[:3]), rows=4,
            description="Questions", tooltip="One line per agent", **LOOK,
        )  # fmt: skip
        self.max_tokens = ipywidgets.IntSlider(value=16, min=1, max=64, description="Answer, tokens", **LOOK)
        self.shown = StrategyBoxes([name for name in STRATEGIES if name != "pooled"])
        rows = [self.document, self.depth, self.questions, self.max_tokens, row(*self.shown.values())]
        super().__init__(rows, "race")

    def timelines(self) -> dict[str, pd.DataFrame]:
        """The timelines of the finished runs, and of the one that is going on."""
        runs, live = dict(self.runs), self._live  # the race's thread may change them meanwhile
        timelines = {name: run.timeline for name, run in runs.items()}
        if live is not None and live.strategy not in timelines:
            timelines[live.strategy] = live.timeline
        return timelines

    def finished(self) -> str:
        """How many strategies have run."""
        return f"; {len(self.runs)} finished"

    def work(self) -> None:
        """Run every strategy once, after a warm-up."""
        self.runs, self._live = {}, None
        self.answers.value = ""
        names = self.shown.ticked
        questions = [line for line in map(str.strip, self.questions.value.splitlines()) if line]
        if not questions:
            raise SwarmKVError("there is no question: write at least one, one per line")
        self.say("warming up")
        if self.model is None:
            self.model = load_model()
        depth = self.depth.value
        tokens = self.model.tokenize(load_document(self.document.value))

        def callback(run: Run) -> None:
            races = len(run.tokens) == depth  # not the warm-up
            if races:
                self._live = run
                self.say(f"{run.strategy} is running")
            self.look(draw=races)

        once = rounds([depth], [len(questions)], 1)
        how = {"max_tokens": self.max_tokens.value, "callback": callback}
        asked = plan(self.model, tokens, once, names, agents=questions, **how)
        for _, run, _ in measure(asked, once, progress=False):
            self.runs[run.strategy] = run
            self.progress.value = len(self.runs) / len(names)
            self.redraw()
            self.answers.value = self._answers()

    def _answers(self) -> str:
        runs = list(self.runs.values())
        first = runs[0]
        rows = [(agent.name, *(run.answers[agent.name] for run in runs)) for agent in first.branches]
        times = [f"{run.metrics['end_to_end_ms'] / 1e3:,.2f} s" for run in runs]
        same = ["the same tokens" if run.compare(first).same_tokens.all() else "other tokens" for run in runs]
        rows += [("end to end", *times), (f"compared with {first.strategy}", *same)]
        return html_table(rows, "Answers and end-to-end times (measured)", ["", *self.runs])


race = Race
