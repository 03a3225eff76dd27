"""The race: run strategies one after another on a document and your own questions, live."""

import threading
import time
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import swarmkv_lab as lab
from swarmkv_lab.errors import INT32_MAX
from swarmkv_lab.fanout.recorder import BASELINE
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_studies.common.rounds import measure, plan, rounds
from swarmkv_studies.common.style import as_html
from swarmkv_studies.common.widgets import LOOK, WIDE, DocumentChoice, Explorer, alert, html_table, row
from swarmkv_studies.naive_vs_fanout.figures import lanes

_DEPTHS = (128, 256, 512, 1024, 2048, 3501, 5000, 7000)
_OF_THE_DOSSIER = list(lab.load_agents("dossier").values())[:3]
_OF_ANY = ["What is this text about?", "Who is named in it?", "Which dates and amounts does it give?"]


_REDRAW_S = 0.7  # seconds; a run's clock is stopped while a picture is drawn, but the reader waits


class Stopped(Exception):
    """The reader pressed Stop."""


class Race(Explorer):
    """Choose document, depth, questions and strategies; Run shows the growing timeline and the answers side by side.

    It runs in a thread, so that Stop responds; ``wait()`` waits for its end.
    document: "dossier", "article", a file's path or a text (see DocumentChoice); others can be pasted and uploaded.
    ``runs``: the finished runs by strategy. A model that is not given is loaded at the first run.
    """

    def __init__(self, model: lab.Model | None = None, depth: int = 512, document: str | Path = "dossier") -> None:
        self.model = model
        self.runs: dict[str, Run] = {}
        self._live: Run | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._drawn = 0.0  # time.monotonic()
        self._began = 0.0  # time.time(), of the first run
        self._work_of: dict[str, int] = {}  # strategy: tokens that it decodes, at most
        self.document = DocumentChoice(document)
        self._tokens: np.ndarray | None = None
        self._depths, self._wanted = sorted({*_DEPTHS, depth}), depth
        self.depth = ipywidgets.SelectionSlider(options=self._depths, value=depth, description="Depth, tokens", **LOOK)
        self.questions = ipywidgets.Textarea(
            value="\n".join(_OF_THE_DOSSIER), rows=4, description="Questions", tooltip="One line per agent", **LOOK
        )
        self.max_tokens = ipywidgets.IntSlider(value=16, min=1, max=64, description="Answer, tokens", **LOOK)
        look = {"indent": False, "layout": ipywidgets.Layout(width="auto", margin="0 1em 0 0")}
        self.shown = {name: ipywidgets.Checkbox(name != "pooled", description=name, **look) for name in lab.STRATEGIES}
        self.run_button = ipywidgets.Button(description="Run", button_style="primary", tooltip="Start the race")
        self.stop_button = ipywidgets.Button(description="Stop", tooltip="Stop after the current batch")
        self.progress = ipywidgets.FloatProgress(min=0, max=1, description="Progress", **LOOK)
        self.run_button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        self.answers = ipywidgets.HTML(layout=WIDE)
        rows = [self.document, self.depth, self.questions, self.max_tokens, row(*self.shown.values())]
        super().__init__([], [*rows, row(self.run_button, self.stop_button), self.progress])
        self.children = [*self.children, self.answers]
        self.depth.observe(self._want_depth, names="value")
        for control in self.document.controls:
            control.observe(lambda _: self._new_document(), names="value")
        self._new_document()

    def timelines(self) -> dict[str, pd.DataFrame]:
        """The timelines of the finished runs, and of the one that is going on."""
        runs, live = dict(self.runs), self._live  # the race's thread may change them meanwhile
        timelines = {name: run.timeline for name, run in runs.items()}
        if live is not None and live.strategy not in timelines:
            timelines[live.strategy] = live.timeline
        return timelines

    def figure(self) -> Figure:
        """The timelines so far. Raises SwarmKVError before the first run."""
        timelines = self.timelines()
        if not timelines:
            raise lab.SwarmKVError("nothing has run yet: press Run")
        return lanes(timelines)

    def redraw(self) -> None:
        """Draw the timelines; before the first run there is nothing to draw."""
        if self.timelines():
            self.picture.value = as_html(self.figure())

    def start(self) -> None:
        """Start the race, unless it is running."""
        if self._thread and self._thread.is_alive():
            return
        self._stop.clear()
        self._point_at(self.stop_button)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current batch; finished results stay."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the race, at most ``timeout`` seconds; return whether it has ended."""
        if self._thread:
            self._thread.join(timeout)
        return not (self._thread and self._thread.is_alive())

    def _run(self) -> None:
        try:
            self._work()
            self._say("finished")
        except Stopped:
            self._say("stopped")
        except lab.SwarmKVError as error:
            self.message.value = alert(error)
        except Exception as error:  # unexpected errors are shown too, and the buttons work again
            self.message.value = alert(RuntimeError(f"{type(error).__name__}: {error}"))
        finally:
            self.text.value = ""
            self._point_at(self.run_button)

    def _point_at(self, button: ipywidgets.Button) -> None:
        """Colour the button that does something now. None is ever disabled, as it would lose the keyboard's focus."""
        for each in (self.run_button, self.stop_button):
            each.button_style = "primary" if each is button else ""

    def _work(self) -> None:
        """Run every strategy once, after a warm-up."""
        names = [name for name, box in self.shown.items() if box.value]
        if not names:
            raise lab.SwarmKVError("no strategy is chosen: tick one")
        questions = [line for line in map(str.strip, self.questions.value.splitlines()) if line]
        if not questions:
            raise lab.SwarmKVError("there is no question: write at least one, one per line")
        self._say("warming up")
        if self.model is None:
            self.model = lab.load_model()
        tokens = self._tokens if self._tokens is not None else self._read()
        depth = min(self.depth.value, len(tokens))

        def callback(run: Run) -> None:
            if self._stop.is_set():
                raise Stopped
            if len(run.tokens) < depth:  # the warm-up
                return
            if run is not self._live or time.monotonic() - self._drawn > _REDRAW_S:
                self._live = run
                self.redraw()
                self._report(run)
                self._drawn = time.monotonic()

        once = rounds([depth], [len(questions)], 1)
        how = {"max_tokens": self.max_tokens.value, "callback": callback}
        asked = plan(self.model, tokens, once, names, agents=questions, **how)
        self.picture.value = self.answers.value = ""  # only now, as nothing is left to be refused
        self.progress.value = 0
        own = sum(map(len, asked.prompts.values())) + len(questions) * self.max_tokens.value
        self._work_of = {name: depth * (len(questions) if name == BASELINE else 1) + own for name in names}
        self.runs, self._live, self._began = {}, None, 0.0
        for _, run, _ in measure(asked, progress=False):
            self.runs[run.strategy] = run
            self.redraw()
            self.answers.value = self._answers()
        self.progress.value = 1

    def _report(self, run: Run) -> None:
        """Which strategy is running, and, as far as the tokens that are done tell it, how long all will take."""
        self._say(f"{run.strategy} is running, {len(self.runs) + 1} of {len(self._work_of)} strategies")
        self._began = self._began or run.began
        done = run.computed + sum(branch.computed + len(branch.tokens) for branch in run.branches)
        done += sum(self._work_of[name] for name in self.runs if name != run.strategy)
        share = self.progress.value = done / sum(self._work_of.values())
        if share:
            left = (time.time() - self._began) * (1 - share) / share
            self.text.value = f"<p>{share:.0%} of the tokens are done; about {left:,.0f} s left</p>"

    def _say(self, what: str) -> None:
        """Show a sentence above the picture; it is read out, so it says no number that changes all the time."""
        self.message.value = f"<p>{escape(what)}</p>"

    def _new_document(self) -> None:
        """Read the document, if it is there and can be counted; let depths and questions follow it."""
        self._tokens = None
        self.message.value = ""
        asked, usual = self.questions.value.splitlines(), [_OF_ANY, _OF_THE_DOSSIER]
        if asked in usual:  # not the reader's own
            self.questions.value = "\n".join(usual[self.document.is_bundled])
        self._offer_depths(None)
        if self.model and self.document.is_given:
            try:
                self._read()
            except lab.SwarmKVError as error:
                self.message.value = alert(error)

    def _read(self) -> np.ndarray:
        """The document's tokens; the depth is limited to them."""
        self._tokens = self.model.read(self.document.text())
        limited = len(self._tokens) < self.depth.value < INT32_MAX
        if limited or not self.document.is_bundled:
            so = ", so the depth is all of it" if limited else ""
            self._say(f"{self.document.name} has {len(self._tokens):,} tokens{so}")
        self._offer_depths(len(self._tokens))
        return self._tokens

    def _offer_depths(self, n_tokens: int | None) -> None:
        """Depths to choose from: at most the document's, where that is known, and all of it."""
        most = n_tokens or INT32_MAX
        everything = f"all {most:,} tokens" if n_tokens else "all tokens"
        wanted = self._wanted  # not the slider's value: the last document may have been shorter
        depths = [n for n in self._depths if n < most]
        self.depth.options = [(f"{n:,}", n) for n in depths] + [(everything, most)]
        near = [n for n in depths if n <= wanted] or depths[:1] or [most]
        self.depth.value = most if wanted >= most else near[-1]
        self._wanted = wanted  # those two lines are nobody's choice

    def _want_depth(self, change: Any) -> None:
        """Keep the depth that the reader chooses, also for the next document."""
        self._wanted = change.new

    def _answers(self) -> str:
        runs = list(self.runs.values())
        first = runs[0]
        said = [[_answer(run, branch) for branch in run.branches] for run in runs]
        rows = [(branch.name, *texts) for branch, *texts in zip(first.branches, *said, strict=True)]
        times = [f"{run.metrics['end_to_end_ms'] / 1e3:,.2f} s" for run in runs]
        same = ["the same tokens" if run.compare(first).same_tokens.all() else "other tokens" for run in runs]
        rows += [("end to end", *times), (f"compared with {first.strategy}", *same)]
        return html_table(rows, "Answers and end-to-end times (measured)", ["agent", *self.runs])


def _answer(run: Run, branch: Branch) -> str:
    """An answer's text, marked where it ended only because it had no more tokens."""
    cut = f" … (cut at {branch.max_tokens} tokens)" if len(branch.tokens) == branch.max_tokens else ""
    return run.answers[branch.name] + cut


race_widget = Race
