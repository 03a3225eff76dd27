"""The book: the repository's pages as a web site. make book builds it; nothing is executed.

The source is the repository's root, and the site lies as the repository does. So a relative link is right on GitHub, in
JupyterLab and here. Where it leads to a file that is no page of the book, the file is copied to the same place.
"""

import ast
import functools
import inspect
import re
import shutil
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import download_reference
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import swarmkv_lab as lab

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


FRONT_DOOR = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>SwarmKV Lab</title>
<meta http-equiv="refresh" content="0; url=book/index.html">
<p><a href="book/index.html">SwarmKV Lab</a></p>
</html>
"""


class PublicNames(SphinxDirective):
    """All public names with their docstrings, by folder, in the order of CONTRIBUTING's table."""

    def run(self) -> list[nodes.Node]:
        """The sections."""
        for path in [ROOT / "CONTRIBUTING.md", *ROOT.glob("swarmkv_lab/**/*.py"), *ROOT.glob("swarmkv_lab/**/*.pyi")]:
            self.env.note_dependency(str(path))
        return self.parse_text_to_nodes("\n".join(_reference()), allow_section_headings=True)


def _reference() -> Iterator[str]:
    """The sections in reStructuredText."""
    public = _public_names()
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("`", "``")
    for folders, what in re.findall(r"^\| (``.*``) \| (.*) \|$", table, re.MULTILINE):
        names = [name for folder in re.findall(r"\w+", folders) for name in public[folder]]
        if names:
            yield from ("", folders, "-" * len(folders), "", f"{what[0].upper()}{what[1:]}.", "")
            yield from map(_entry, names)


def _public_names() -> dict[str, list[str]]:
    """Folder to names, as they are called after swarmkv_lab: those of __init__.pyi, then those of its packages."""
    found = defaultdict(list)
    stub = ast.parse(Path(lab.__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    lines = [line for line in stub if isinstance(line, ast.ImportFrom)]
    for line in lines:
        if line.module:
            found[line.module.split(".")[0]] += [
                alias.name if callable(getattr(lab, alias.name)) else f"{line.module}.{alias.name}"
                for alias in line.names
            ]
    for package in [alias.name for line in lines if not line.module for alias in line.names]:
        found[package] += [f"{package}.{name}" for name in _offered(getattr(lab, package))]
    return found


def _offered(package: ModuleType) -> list[str]:
    """What a package's __init__ defines, or, where it defines nothing, what it brings in from its own files."""
    if not hasattr(package, "__path__"):
        return []  # a file: __init__.pyi lists its names
    names = {name: getattr(package, name) for name in dir(package) if not name.startswith("_")}
    named = {name: what.__module__ for name, what in names.items() if inspect.isroutine(what) or inspect.isclass(what)}
    own = [name for name, module in named.items() if module == package.__name__]
    return own or [name for name, module in named.items() if module.startswith(f"{package.__name__}.")]


def _entry(name: str) -> str:
    what = functools.reduce(getattr, name.split("."), lab)
    if inspect.isclass(what):
        return f".. autoclass:: swarmkv_lab.{name}\n   :members:\n"
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
        node.replace_self(nodes.reference("", "", *node.children, refuri=f"{up}{file}", internal=True))


def copy_pages(app: Sphinx, error: Exception | None) -> None:
    """The pages that are not Sphinx's: of figures/, with the data and the pages that they lead to, and a front door."""
    site = Path(app.outdir)
    for path in [*ROOT.glob("figures/*"), *ROOT.glob("data/*.csv"), *ROOT.glob("data/reference/*")]:
        _copy(path.relative_to(ROOT).as_posix(), site)
    for path in (site / "figures").glob("*.html"):
        html = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r'(href="\.\./[^"#]+)\.(?:ipynb|md)', r"\1.html", html), encoding="utf-8")
    (site / "index.html").write_text(FRONT_DOOR, encoding="utf-8")


def _copy(file: str, site: Path) -> None:
    (site / file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / file, site / file)


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    app.add_directive("public-names", PublicNames)
    app.connect("autodoc-process-signature", short_signature)
    app.connect("doctree-read", link_in_place, priority=400)  # before Sphinx collects what is to be downloaded
    app.connect("build-finished", copy_pages)
