"""The dashboard: the notebooks' pages, the figures and the data, and live explorers, from one server on loopback."""

from pathlib import Path
from typing import Any

import nbformat
from jupyter_server.base.handlers import AuthenticatedFileHandler, JupyterHandler
from jupyter_server.extension.application import ExtensionApp
from tornado.web import RedirectHandler

from swarmkv_lab.files import ROOT, RUNS
from swarmkv_studies.cli.notebooks import project_notebooks
from swarmkv_studies.cli.pages import write_pages

_PAGES = RUNS / "dashboard"
_EXPLORERS = (
    "import swarmkv_lab as lab\nfrom swarmkv_lab import widgets",
    "# SwarmKV Lab: explorers\n\n[All notebooks](/dashboard/index.html)\n\nNothing is measured until you press Run.",
    "## How big is it, and how many agents fit?",
    "widgets.sizing_explorer()",
    "## How long does it take?",
    "widgets.latency_explorer()",
    "## Race the strategies",
    "widgets.race()",
    "## Watch a pipeline",
    "model = lab.load_model()\n"
    'widgets.stream(studies.load_pipeline("dossier", model, n_tokens=studies.profile().pipeline))',
    "## Look into a snapshot",
    'tokens = model.tokenize(lab.load_document("dossier"))[:256]\n'
    "widgets.snapshot_inspector(model, lab.prefill(model, tokens, progress=False))",
)
_AS_TEXT = {".csv", ".jsonl", ".md", ".toml"}  # what a browser would only download


class Files(AuthenticatedFileHandler):
    """Serves our own files to whoever has the server's token. Pages may run their scripts, and text is shown."""

    @property
    def content_security_policy(self) -> str:
        """Jupyter's, without the sandbox that it puts a notebook's files in."""
        return str(JupyterHandler.content_security_policy.fget(self))  # type: ignore[attr-defined]

    def check_xsrf_cookie(self) -> None:
        """Let a bookmark in, which has no referer: these pages are only read."""

    def get_content_type(self) -> str:
        """The type by the file's name."""
        if Path(self.absolute_path or "").suffix in _AS_TEXT:
            return "text/plain; charset=UTF-8"
        return super().get_content_type()


_SERVER = {
    "ip": "127.0.0.1",
    "root_dir": str(ROOT),
    "open_browser": False,  # so that its address is the last line that is printed
    "jpserver_extensions": {"voila.server_extension": True},
}
_HANDLERS = [  # the folders lie as in the repository, so that the notebooks' links are right
    (r"/dashboard/(notebooks/\w+)\.ipynb", RedirectHandler, {"url": "/dashboard/{0}.html"}),
    (r"/dashboard/((?:book|data|figures)/.*)", Files, {"path": str(ROOT)}),
    (r"/dashboard/(.*)", Files, {"path": str(_PAGES), "default_filename": "index.html"}),
]


class Dashboard(ExtensionApp):
    """Adds /dashboard/ to a Jupyter server. Of other extensions only Voila is loaded, which runs the explorers."""

    name = "swarmkv_dashboard"
    default_url = "/dashboard/index.html"
    serverapp_config = _SERVER
    handlers = _HANDLERS

    @classmethod
    def get_extension_package(cls) -> str:
        """Where Jupyter finds ``_jupyter_server_extension_points``."""
        return __name__


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    return [{"module": __name__, "app": Dashboard}]


def serve(arguments: list[str]) -> None:
    """Write the pages and serve them until an interrupt. arguments: for the Jupyter server."""
    notebook = nbformat.v4.new_notebook()
    new = {True: nbformat.v4.new_markdown_cell, False: nbformat.v4.new_code_cell}
    notebook.cells = [new[text.startswith("#")](text) for text in _EXPLORERS]
    _PAGES.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, _PAGES / "explorers.ipynb")
    write_pages(project_notebooks(), _PAGES, (_PAGES / "explorers.ipynb").relative_to(ROOT).as_posix())
    Dashboard.launch_instance(arguments)
