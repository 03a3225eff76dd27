"""Live: an explorer whose work goes on in a thread of its own, so that Stop is heard."""

import threading
import time
from html import escape

import ipywidgets

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.widgets.explorer import LOOK, WIDE, Explorer, alert, row

_REDRAW_S = 0.7  # a run's clock stands still while its picture is drawn, but the reader's does not


class Stopped(Exception):
    """The reader pressed Stop."""


class Live(Explorer):
    """Run begins ``work()`` in a thread, Stop ends it at the next ``look()``; ``wait()`` joins it.

    ``answers``: HTML below the picture, the work's to fill.
    """

    def __init__(self, rows: list[ipywidgets.Widget], what: str) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._drawn = 0.0
        self.run_button = ipywidgets.Button(description="Run", button_style="primary", tooltip=f"Start the {what}")
        self.stop_button = ipywidgets.Button(description="Stop", disabled=True, tooltip="Stop within one batch")
        self.progress = ipywidgets.FloatProgress(min=0, max=1, description="Progress", **LOOK)
        self.run_button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        self.answers = ipywidgets.HTML(layout=WIDE)
        super().__init__([], [*rows, row(self.run_button, self.stop_button), self.progress])
        self.children = [*self.children, self.answers]

    def work(self) -> None:
        """What Run begins."""
        raise NotImplementedError

    def start(self) -> None:
        """Begin, unless it is running."""
        if self._thread and self._thread.is_alive():
            return
        self._stop.clear()
        self.picture.value = ""
        self.progress.value = 0
        self.run_button.disabled, self.stop_button.disabled = True, False
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End at the next batch; what is finished stays."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end: whether it has come."""
        if self._thread:
            self._thread.join(timeout)
        return not (self._thread and self._thread.is_alive())

    def look(self, *, draw: bool = True) -> None:
        """Called now and then by the work: raises Stopped once Stop was pressed, and redraws when it is time."""
        if self._stop.is_set():
            raise Stopped
        if draw and time.monotonic() - self._drawn > _REDRAW_S:
            self.redraw()
            self._drawn = time.monotonic()

    def say(self, what: str) -> None:
        """A sentence above the picture."""
        self.message.value = f"<p role='status'>{escape(what)}</p>"

    def finished(self) -> str:
        """What is finished, for the sentence that says that the rest was stopped."""
        return ""

    def _run(self) -> None:
        try:
            self.work()
            self.say("finished")
        except Stopped:
            self.say(f"stopped{self.finished()}")
        except SwarmKVError as error:
            self.message.value = alert(error)
        except Exception as error:  # what we did not foresee is said too, and the buttons come back
            self.message.value = alert(RuntimeError(f"{type(error).__name__}: {error}"))
        finally:
            self.run_button.disabled, self.stop_button.disabled = False, True
