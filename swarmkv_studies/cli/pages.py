"""The notebooks as web pages, with the outputs that they were committed with: nothing is executed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from swarmkv_lab.files import DATA, ROOT, RUNS, replacing
from swarmkv_studies.book.pages import TEMPLATES

_LIGHT, _DARK = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "github-dark"))
_CODE_COLOURS = f"{_LIGHT}\n@media (prefers-color-scheme: dark) {{\n{_DARK}\n}}\n.highlight {{ background: none; }}"


@dataclass(frozen=True)
class Page:
    """A notebook's page: the file's name without its suffix, the first heading, and how long the notebook runs."""

    name: str
    title: str
    duration: str
    notebook: nbformat.NotebookNode


def write_pages(notebooks: Sequence[Path], folder: Path, explorers: str) -> None:
    """Write index.html, and a page per notebook to notebooks/, into ``folder``.

    explorers: the path of the explorers' notebook from the server's root, which the index links to.
    """
    exporter = HTMLExporter(
        template_name="pages",
        extra_template_basedirs=[str(Path(__file__).parent / "templates")],
        extra_template_paths=[str(TEMPLATES)],  # of the look that all pages share
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    measured = _measured()
    durations = _durations(measured)
    pages = [_page(path, durations.get(path.stem, "")) for path in notebooks]
    for before, page, after in zip([None, *pages], pages, [*pages[1:], None], strict=False):
        around = {"title": page.title, "before": before, "after": after, "code_colours": _CODE_COLOURS}
        html, _ = exporter.from_notebook_node(page.notebook, around)
        _write(folder / "notebooks" / f"{page.name}.html", html)
    contents = exporter.environment.get_template("contents.html.j2")
    data = measured and measured.relative_to(ROOT).as_posix()
    _write(folder / "index.html", contents.render(pages=pages, explorers=explorers, measured=data))


def _page(path: Path, duration: str) -> Page:
    notebook = nbformat.read(path, as_version=4)
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]
            heading = headings[-1] if headings else heading
        for output in cell.get("outputs", []):  # a picture is called by the heading that it stands under
            output.setdefault("metadata", {})["image/png"] = {"alt": f"Figure: {heading}"}
    title = notebook.cells[0].source.splitlines()[0].lstrip("# ").replace("*", "").replace("`", "")
    return Page(path.stem, title, duration, notebook)


def _measured() -> Path | None:
    """Where it says how long each notebook runs: measured by ``make reproduce`` here, or else by the maintainers."""
    paths = (folder / "notebooks.csv" for folder in (RUNS / "quick", DATA))
    return next((path for path in paths if path.exists()), None)


def _durations(measured: Path | None) -> dict[str, str]:
    runs = [] if measured is None else pd.read_csv(measured).itertuples()
    return {run.notebook: f"{run.seconds:,.0f} s, {run.cpus} cores, {run.profile} profile" for run in runs}


def _write(path: Path, html: str) -> None:
    with replacing(path) as file:
        file.write(html.encode())
