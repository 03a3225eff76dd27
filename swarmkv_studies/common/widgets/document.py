"""The document of a widget: a bundled one, a file, a text to be pasted, or an upload."""

from pathlib import Path

import ipywidgets

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.documents import SUFFIXES, load_document
from swarmkv_studies.common.widgets.explorer import LOOK

_BUNDLED = ("dossier", "article")
_PASTED, _UPLOAD = "your own text", "upload"
_LONGEST_NAME = 255  # characters


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
