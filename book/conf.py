"""The book: the repository's pages as a web site. make book builds it; nothing is executed.

The source is the repository's root, and the site lies as the repository does. So a relative link is right on GitHub, in
JupyterLab and here. Where it leads to a file that is no page of the book, the file is copied to the same place.

Not by mystmd or Jupyter Book 2, which have no autodoc (jupyter-book/mystmd, issue 1259), and need Node and a theme from
the network (210). Their pages need a web server (188); these open from a folder, with search, and ask no other host.
"""

import ast
import importlib
import inspect
import itertools
import json
import pydoc
import shutil
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import download_reference
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import swarmkv_lab as lab
from swarmkv_studies.book import gallery

ROOT = Path(__file__).parent.parent

project = "SwarmKV Lab"
release = lab.__version__
html_title = project
author = ""
copyright = "the authors of SwarmKV Lab, Apache-2.0"
default_role = "literal"
root_doc = "book/index"
include_patterns = ["book/*.md", "book/*.rst", "notebooks/*.ipynb", "README.md", "CONTRIBUTING.md", "data/README.md"]
exclude_patterns = [".*", "**/.*", "artifacts", "my_notebooks", "data/runs"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.githubpages"]
nb_execution_mode = "off"
nb_ipywidgets_js: dict = {}  # widgets need a kernel, and their scripts a network
myst_heading_anchors = 3
nitpick_ignore_regex = [("py:.*", r".*")]  # type hints name pandas, numpy and what is not public
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_copy_source = False
html_use_index = False  # the package's page and the search find every name
html_static_path = ["book.css"]
html_css_files = ["book.css"]
html_context = {"default_mode": "light"}  # the figures are drawn on white
html_theme_options = {
    "repository_url": tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"],
    "repository_branch": "main",
    "use_repository_button": True,
    "use_download_button": False,
    "launch_buttons": {"binderhub_url": "https://mybinder.org", "colab_url": "https://colab.research.google.com",
                       "notebook_interface": "jupyterlab"},
    "show_toc_level": 2,
    "navbar_persistent": [],  # the side bar has a search field
}  # fmt: skip

# The public names that are packages, and what is in them for a user.
PACKAGES = {"cluster": ["cluster.fan_out", "cluster.ClusterRun"], "serve": ["serve.server.Server"]}

FRONT_DOOR = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>SwarmKV Lab</title>
<meta http-equiv="refresh" content="0; url=book/index.html">
<p><a href="book/index.html">SwarmKV Lab</a></p>
</html>
"""


class Exhibits(SphinxDirective):
    """All figures with their captions, by notebook: what swarmkv_studies/book/gallery.py lists."""

    def run(self) -> list[nodes.Node]:
        """The sections."""
        for path in (__file__, gallery.__file__):
            self.env.note_dependency(path)
        return self.parse_text_to_nodes("\n".join(_exhibits()), allow_section_headings=True)


def _exhibits() -> Iterator[str]:
    """The sections in reStructuredText. Data that readers measure themselves is shown as the repository holds it."""
    for notebook, exhibits in itertools.groupby(gallery.EXHIBITS, key=lambda exhibit: exhibit.notebook):
        title = json.loads((ROOT / f"notebooks/{notebook}.ipynb").read_text(encoding="utf-8"))["cells"][0]["source"][0]
        yield from _heading(title.strip("# \n"), "-")
        yield f"Where it comes from: :doc:`{notebook} </notebooks/{notebook}>`."
        for one in exhibits:
            yield from _heading(one.name.replace("_", " ").capitalize(), "~")
            yield f".. figure:: /figures/{one.name}.png\n   :alt: {one.alt}\n\n   {one.caption}\n"
            data = one.data if one.of_reference or not one.data else f"data/reference/{one.data}"
            links = [f"figures/{one.name}.svg", *filter(None, [data])]
            yield " · ".join(f":download:`{Path(link).name} </{link}>`" for link in links)


class PublicNames(SphinxDirective):
    """All public names of swarmkv_lab with their docstrings, by room."""

    def run(self) -> list[nodes.Node]:
        """The sections."""
        for path in [__file__, *ROOT.glob("swarmkv_lab/**/*.py"), *ROOT.glob("swarmkv_lab/**/*.pyi")]:
            self.env.note_dependency(str(path))
        return self.parse_text_to_nodes("\n".join(_reference()), allow_section_headings=True)


def _reference() -> Iterator[str]:
    """The sections in reStructuredText: what a room is for, in its own words, and its names."""
    for room, names in _public_names().items():
        yield from _heading(f"``{room}``", "-")
        yield importlib.import_module(f"swarmkv_lab.{room}").__doc__ or ""
        yield ""
        yield from map(_entry, names)


def _public_names() -> dict[str, list[str]]:
    """Room to names, as they are called after swarmkv_lab."""
    found = defaultdict(list, PACKAGES)
    for line in ast.parse(Path(lab.__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body:
        if isinstance(line, ast.ImportFrom) and line.module:
            for name in (alias.name for alias in line.names):
                full = name if callable(getattr(lab, name)) else f"{line.module}.{name}"
                found[line.module.split(".")[0]].append(full)
    return {room: found[room] for room in sorted(found, key=lambda room: (room == "errors", room in PACKAGES))}


def _heading(title: str, line: str) -> Iterator[str]:
    yield from ("", title, line * len(title), "")


def _entry(name: str) -> str:
    what = pydoc.locate(f"swarmkv_lab.{name}")
    if inspect.isclass(what):
        others = ", ".join(base.__name__ for base in what.__mro__ if not base.__module__.startswith("swarmkv_lab"))
        return f".. autoclass:: swarmkv_lab.{name}\n   :members:\n   :inherited-members: {others}\n"
    if callable(what):
        return f".. autofunction:: swarmkv_lab.{name}\n"
    return f".. autodata:: swarmkv_lab.{name}\n   :no-value:\n"


def short_signature(app: Sphinx, kind: str, name: str, what: object, options: object, text: str, returns: str) -> Any:
    """Leave out what a widget's class takes from its library, and how a dataclass makes a default."""
    return ("" if text == "(*args: t.Any, **kwargs: t.Any)" else text and text.replace("<factory>", "...")), returns


def link_in_place(app: Sphinx, doctree: nodes.document) -> None:
    """A link to a file that is no page: copy the file to its place in the site, and lead there."""
    for node in list(doctree.findall(download_reference)):
        file, path = app.env.relfn2path(node["reftarget"], app.env.docname)
        if not Path(path).is_file():
            continue  # Sphinx says so
        _copy(file, Path(app.outdir))
        app.env.note_dependency(path)
        up = "../" * app.env.docname.count("/")
        is_role = any("download" in child.get("classes", ()) for child in node.findall(nodes.literal))
        words = [nodes.Text(node.astext())] if is_role else node.children  # the role sets its words as code
        node.replace_self(nodes.reference("", "", *words, refuri=f"{up}{file}", internal=True))


def add_front_door(app: Sphinx, error: Exception | None) -> None:
    """The site's first page, which leads to the book's; and the explorer's links, which lead to the book's pages."""
    site = Path(app.outdir)
    (site / "index.html").write_text(FRONT_DOOR, encoding="utf-8")
    explorer = site / "figures/explorer.html"
    explorer.write_text(explorer.read_text(encoding="utf-8").replace('README.md"', 'README.html"'), encoding="utf-8")


def _copy(file: str, site: Path) -> None:
    (site / file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / file, site / file)


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    app.add_directive("exhibits", Exhibits)
    app.add_directive("public-names", PublicNames)
    app.connect("autodoc-process-signature", short_signature)
    app.connect("doctree-read", link_in_place, priority=400)  # before Sphinx collects what is to be downloaded
    app.connect("build-finished", add_front_door)
