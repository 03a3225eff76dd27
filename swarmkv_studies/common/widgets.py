"""Widgets: an explorer, whose figure follows its controls, and the choice of a document."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
from matplotlib.figure import Figure

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.documents import SUFFIXES, load_document
from swarmkv_studies.common.style import as_html

WIDE = ipywidgets.Layout(width="min(100% - 4px, 46em)")  # a control has margins of 2 px
LOOK: dict[str, Any] = {"style": {"description_width": "10em"}, "layout": WIDE}
_BUNDLED = ("dossier", "article")
_PASTED, _UPLOAD = "your own text", "upload"
_LONGEST_NAME = 255  # characters


def row(*children: ipywidgets.Widget) -> ipywidgets.HBox:
    """Widgets beside each other; a narrow window shows them on several lines."""
    return ipywidgets.HBox(children, layout=ipywidgets.Layout(flex_flow="row wrap"))


class Page(anywidget.AnyWidget):
    """Nothing to see: what an explorer (class ``swarmkv-explorer``) tells the page around it, as its child.

    So its keys are its own, where a letter in a dropdown would change the notebook, its sliders have names, and its
    message is a live region.
    """

    _esm = Path(__file__).with_name("page.js")
    _css = ".swarmkv-explorer .widget-html-content { min-width: 0 }"  # a wide table scrolls, not all around it


class Explorer(ipywidgets.VBox):
    """The base of all explorers. A subclass defines ``figure()`` and ``words()``.

    ``message``: HTML, an error or what is going on, in one sentence: the only part that screen readers read out by
    themselves. ``text``: HTML, the words. ``picture``: HTML, the figure with its title as alt text.
    """

    def __init__(self, controls: Sequence[ipywidgets.Widget], rows: Sequence[ipywidgets.Widget] = ()) -> None:
        """controls: widgets that redraw when their value changes; rows: their layout, by default one per line."""
        self.controls = tuple(controls)
        self.message, self.text, self.picture = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self.message.add_class("swarmkv-message")
        super().__init__([*(rows or controls), self.message, self.text, self.picture, Page()])
        self.add_class("swarmkv-explorer")
        for control in self.controls:
            control.observe(lambda _: self.redraw(), names="value")
        self.redraw()

    def figure(self) -> Figure:
        """The figure for the current values of the controls."""
        raise NotImplementedError

    def words(self) -> str:
        """HTML above the picture."""
        return ""

    @property
    def settings(self) -> str:
        """The controls' descriptions and values: the small print of a figure that stays when they change."""
        return "; ".join(f"{control.description}: {_shown(control)}" for control in self.controls)

    def redraw(self) -> None:
        """Draw again. If the controls' values are wrong, the message is the error, and the last picture stays."""
        try:
            self.text.value, self.picture.value = self.words(), as_html(self.figure())
            self.message.value = ""
        except SwarmKVError as error:
            self.message.value = alert(error)


class DocumentChoice(ipywidgets.VBox):
    """A dropdown of documents, and below it a text area or an upload where that is chosen.

    document: "dossier", "article", a file's path, or a text: what no file is called, as it has several lines or more
    than 255 characters. ``source``, ``pasted``, ``upload``: the controls.
    """

    def __init__(self, document: str | Path = "dossier") -> None:
        options, pasted = [*_BUNDLED, _PASTED, _UPLOAD], ""
        if isinstance(document, str) and ("\n" in document or len(document) > _LONGEST_NAME):
            document, pasted = _PASTED, document
        elif str(document) not in _BUNDLED:
            options.insert(0, str(document))
        names = [(Path(name).name, name) for name in options]
        self.source = ipywidgets.Dropdown(options=names, value=str(document), description="Document", **LOOK)
        self.pasted = ipywidgets.Textarea(
            value=pasted,
            rows=6,
            placeholder="Paste a text here",
            description="Your text",
            continuous_update=False,
            **LOOK,
        )
        self.upload = ipywidgets.FileUpload(
            accept=",".join(SUFFIXES), description="Choose a file", tooltip="A text, Markdown, HTML or PDF file",
            layout=ipywidgets.Layout(margin="2px 2px 2px 9.6em"),  # below the dropdown, not its label
        )  # fmt: skip
        self.controls = (self.source, self.pasted, self.upload)
        super().__init__()
        self.source.observe(lambda _: self._show(), names="value")
        self._show()

    @property
    def is_bundled(self) -> bool:
        """Whether it comes with the lab, and with questions."""
        return self.source.value in _BUNDLED

    @property
    def is_given(self) -> bool:
        """Whether there is a document: not while the reader has pasted and uploaded nothing yet."""
        waits = {_PASTED: not self.pasted.value.strip(), _UPLOAD: not self.upload.value}
        return not waits.get(self.source.value)

    @property
    def name(self) -> str:
        """What it is called."""
        uploaded = self.source.value == _UPLOAD and self.is_given
        return self.upload.value[0]["name"] if uploaded else self.source.label

    def text(self) -> str:
        """What the document says. Raises SwarmKVError if there is none, and as load_document does."""
        if not self.is_given:
            raise SwarmKVError("there is no document yet: paste a text, choose a file, or take another document")
        if self.source.value == _PASTED:
            return self.pasted.value
        if self.source.value == _UPLOAD:
            return load_document(self.name, bytes(self.upload.value[0]["content"]))
        return load_document(self.source.value)

    def _show(self) -> None:
        below = {_PASTED: [self.pasted], _UPLOAD: [self.upload]}
        self.children = [self.source, *below.get(self.source.value, [])]


def _shown(control: ipywidgets.Widget) -> str:
    return f"{getattr(control, 'label', None) or control.value}"


def alert(error: Exception) -> str:
    """An error as HTML, for ``Explorer.message``."""
    return f"<p class='swarmkv-error' style='color:#B00020'>{escape(str(error))}</p>"


def size(n_bytes: int) -> str:
    """Bytes for a reader, in the unit of the figures (1 GB is 1e9 bytes): 28,672 bytes; 200.8 MB; 9.17 GB."""
    if n_bytes < 1e6:
        return f"{n_bytes:,} bytes"
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:,.2f} GB"


def html_table(rows: Sequence[Sequence[str]], caption: str, head: Sequence[str] = ()) -> str:
    """An HTML table that scrolls in a narrow window; the first cell of each row is its heading."""
    cell = "style='text-align:left;vertical-align:top;padding:0.2em 0.5em 0.2em 0'"
    top = "".join(f"<th scope='col' {cell}>{escape(text)}</th>" for text in head)
    body = "".join(
        f"<tr><th scope='row' {cell}>{escape(first)}</th>"
        + "".join(f"<td {cell}>{escape(text)}</td>" for text in rest)
        + "</tr>"
        for first, *rest in rows
    )
    title = f"<caption style='text-align:left'>{escape(caption)}</caption>"
    rows_of_it = f"{title}{f'<tr>{top}</tr>' if head else ''}{body}"
    return f"<div style='overflow-x:auto'><table style='border-collapse:collapse'>{rows_of_it}</table></div>"
