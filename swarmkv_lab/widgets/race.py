"""The race: strategies against each other on a document and questions of one's own, live."""

import threading
import time
from html import escape
from typing import Any

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure

from swarmkv_lab import figures
from swarmkv_lab.documents import load_agents, load_document
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.grid import measure, rounds
from swarmkv_lab.llama import Model
from swarmkv_lab.models import load_model
from swarmkv_lab.run import Run
from swarmkv_lab.strategies import STRATEGIES
from swarmkv_lab.widgets.explorer import LOOK, WIDE, Explorer, StrategyBoxes, alert, picture, row, table

_DEPTHS = (128, 256, 512, 1024, 2048, 3501, 5000, 7000)
_REDRAW_S = 0.7  # the run's clock stands still while its picture is drawn, but the reader's does not


class _Stopped(Exception):
    """The reader pressed Stop."""


class Race(Explorer):
    """Pick document, depth, questions and strategies; Run, watch the timeline grow, read the answers side by side.

    ``runs``: the finished runs by strategy. The race runs in a thread of its own, so that Stop is heard: ``wait()``
    joins it. A model that is not given is loaded at the first run.
    """

    name = "race"

    def __init__(self, model: Model | None = None, depth: int = 512) -> None:
        self.model = model
        self.runs: dict[str, Run] = {}
        self._live: Run | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.document = ipywidgets.Dropdown(options=["dossier", "article"], description="Document", **LOOK)
        options = [(f"{n:,}", n) for n in _DEPTHS]
        self.depth = ipywidgets.SelectionSlider(options=options, value=depth, description="Depth, tokens", **LOOK)
        self.questions = ipywidgets.Textarea(
            value="\n".join(list(load_agents("dossier").values())[:3]), rows=4,
            description="Questions", tooltip="One line an agent", **LOOK,
        )  # fmt: skip
        self.max_tokens = ipywidgets.IntSlider(value=16, min=1, max=64, description="Answer, tokens", **LOOK)
        self.shown = StrategyBoxes([name for name in STRATEGIES if name != "pooled"])
        self.run_button = ipywidgets.Button(description="Run", button_style="primary", tooltip="Start the race")
        self.stop_button = ipywidgets.Button(description="Stop", disabled=True, tooltip="Stop within one batch")
        self.progress = ipywidgets.FloatProgress(min=0, max=1, description="Progress", **LOOK)
        self.answers = ipywidgets.HTML()
        self.run_button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        rows = [
            self.document, self.depth, self.questions, self.max_tokens, row(*self.shown.values()),
            row(self.run_button, self.stop_button), self.progress,
        ]  # fmt: skip
        super().__init__([], rows)
        self.children = [*self.children, self.answers]
        self.answers.layout = WIDE

    def start(self) -> None:
        """Begin the race, unless one is running."""
        if self._thread and self._thread.is_alive():
            return
        self._stop.clear()
        self.runs, self._live = {}, None
        self.answers.value = self.picture.value = ""
        self.run_button.disabled, self.stop_button.disabled = True, False
        self._thread = threading.Thread(target=self._race, name="race", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the race at the next batch; what is finished stays."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the race to end: whether it has."""
        if self._thread:
            self._thread.join(timeout)
        return not (self._thread and self._thread.is_alive())

    def figure(self) -> Figure:
        """The timelines as far as they have come."""
        return figures.lanes(self._timelines())

    def data(self) -> pd.DataFrame:
        """The timelines as far as they have come, a row a span."""
        return pd.concat([spans.assign(strategy=name) for name, spans in self._timelines().items()], ignore_index=True)

    def redraw(self) -> None:
        """Nothing to see before the first run."""
        if self.runs or self._live:
            self.picture.value = picture(self.figure())

    def _timelines(self) -> dict[str, pd.DataFrame]:
        runs, live = dict(self.runs), self._live  # the race's thread goes on meanwhile
        timelines = {name: run.timeline for name, run in runs.items()}
        if live is not None and live.strategy not in timelines:
            timelines[live.strategy] = live.so_far()
        if not timelines:
            raise SwarmKVError("nothing has run yet: press Run")
        return timelines

    def _race(self) -> None:
        try:
            self._measure()
            self._say("finished")
        except _Stopped:
            self._say(f"stopped; {len(self.runs)} finished")
        except SwarmKVError as error:
            self.message.value = alert(error)
        except Exception as error:  # what we did not foresee is said too, and the buttons come back
            self.message.value = alert(RuntimeError(f"{type(error).__name__}: {error}"))
        finally:
            self.run_button.disabled, self.stop_button.disabled = False, True

    def _measure(self) -> None:
        names = self.shown.ticked
        questions = [line for line in map(str.strip, self.questions.value.splitlines()) if line]
        if not questions:
            raise SwarmKVError("there is no question: write at least one, a line each")
        self._say("warming up")
        self.progress.value = 0
        if self.model is None:
            self.model = load_model()
        depth = self.depth.value
        tokens = self.model.tokenize(load_document(self.document.value))
        drawn = 0.0

        def watch(run: Run) -> None:
            nonlocal drawn
            if self._stop.is_set():
                raise _Stopped
            if len(run.tokens) == depth and time.monotonic() - drawn > _REDRAW_S:  # not while warming up
                self._live = run
                self._say(f"{run.strategy} is running")
                self.redraw()
                drawn = time.monotonic()

        once = rounds([depth], [len(questions)], 1)
        settings = {"agents": questions, "max_tokens": self.max_tokens.value, "watch": watch, "progress": False}
        for _, run, _ in measure(self.model, tokens, once, names, **settings):
            self.runs[run.strategy] = run
            self.progress.value = len(self.runs) / len(names)
            self.redraw()
            self.answers.value = self._answers()
            drawn = time.monotonic()

    def _say(self, what: str) -> None:
        self.message.value = f"<p role='status'>{escape(what)}</p>"

    def _answers(self) -> str:
        first = next(iter(self.runs.values()))
        rows = [(agent.name, *(run.answers[agent.name] for run in self.runs.values())) for agent in first.branches]
        times = [f"{run.metrics['end_to_end_ms'] / 1e3:,.2f} s" for run in self.runs.values()]
        same = [
            "the same tokens" if run.compare(first).same_tokens.all() else "other tokens" for run in self.runs.values()
        ]
        rows += [("end to end", *times), (f"against {first.strategy}", *same)]
        return table(rows, "Answers, and how long all of them took (measured)", ["", *self.runs])


def race(model: Model | None = None, **start: Any) -> Race:
    """The race; start: depth."""
    return Race(model, **start)
