"""Live: an explorer that works in its own thread, so that the Stop button responds."""

import threading
import time
from html import escape

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure

import swarmkv_studies as studies
from swarmkv_lab.errors import SwarmKVError
from swarmkv_studies.common.style import as_html
from swarmkv_studies.common.widgets.explorer import LOOK, WIDE, Explorer, alert, row

_REDRAW_S = 0.7  # seconds; a run's clock is stopped while a picture is drawn, but the reader waits


class Stopped(Exception):
    """The reader pressed Stop."""


class Live(Explorer):
    """Run starts ``work()`` in a thread, Stop ends it at the next ``look()``; ``wait()`` waits for its end.

    ``answers``: HTML, below the picture unless a subclass moves it, which the work fills.
    """

    def __init__(self, rows: list[ipywidgets.Widget], what: str) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._drawn = 0.0
        self.run_button = ipywidgets.Button(description="Run", button_style="primary", tooltip=f"Start the {what}")
        self.stop_button = ipywidgets.Button(description="Stop", disabled=True, tooltip="Stop after the current batch")
        self.progress = ipywidgets.FloatProgress(min=0, max=1, description="Progress", **LOOK)
        self.run_button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        self.answers = ipywidgets.HTML(layout=WIDE)
        super().__init__([], [*rows, row(self.run_button, self.stop_button), self.progress])
        self.children = [*self.children, self.answers]

    def work(self) -> None:
        """The work that Run starts, in the thread."""
        raise NotImplementedError

    def timelines(self) -> dict[str, pd.DataFrame]:
        """The timelines so far by strategy, a row per span; empty before the first run."""
        raise NotImplementedError

    def figure(self) -> Figure:
        """The timelines so far. Raises SwarmKVError before the first run."""
        return studies.lanes(self._begun())

    def data(self) -> pd.DataFrame:
        """The timelines so far, a row per span. Raises SwarmKVError before the first run."""
        return pd.concat([spans.assign(strategy=name) for name, spans in self._begun().items()], ignore_index=True)

    def redraw(self) -> None:
        """Draw the timelines; before the first run there is nothing to draw."""
        if timelines := self.timelines():
            self.picture.value = as_html(studies.lanes(timelines))

    def start(self) -> None:
        """Start the work, unless it is running."""
        if self._thread and self._thread.is_alive():
            return
        self._stop.clear()
        self.run_button.disabled, self.stop_button.disabled = True, False
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """The work calls this when nothing is left to be refused: only now the last results are gone."""
        self.picture.value = self.answers.value = ""
        self.progress.value = self._drawn = 0

    def stop(self) -> None:
        """Stop after the current batch; finished results stay."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the work, at most ``timeout`` seconds; return whether it has ended."""
        if self._thread:
            self._thread.join(timeout)
        return not (self._thread and self._thread.is_alive())

    def look(self, *, draw: bool = True) -> None:
        """The work calls this often: it raises Stopped after Stop was pressed, and now and then draws and reports."""
        if self._stop.is_set():
            raise Stopped
        if draw and time.monotonic() - self._drawn > _REDRAW_S:
            self.redraw()
            self.report()
            self._drawn = time.monotonic()

    def report(self) -> None:
        """Say what is running and how far it is."""
        raise NotImplementedError

    def say(self, what: str) -> None:
        """Show a sentence above the picture."""
        self.message.value = f"<p role='status'>{escape(what)}</p>"

    def _begun(self) -> dict[str, pd.DataFrame]:
        timelines = self.timelines()
        if not timelines:
            raise SwarmKVError("nothing has run yet: press Run")
        return timelines

    def _run(self) -> None:
        try:
            self.work()
            self.say("finished")
        except Stopped:
            self.say("stopped")
        except SwarmKVError as error:
            self.message.value = alert(error)
        except Exception as error:  # unexpected errors are shown too, and the buttons work again
            self.message.value = alert(RuntimeError(f"{type(error).__name__}: {error}"))
        finally:
            self.run_button.disabled, self.stop_button.disabled = False, True
