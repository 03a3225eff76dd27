"""Notebooks: each runs from top to bottom, on a twin that speaks and as a reader runs it; links."""

import re

import nbformat
import pytest
from conftest import ROOT, write_speaker

from swarmkv_studies.cli.notebooks import execute

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def run(path, profile, folder):
    """With the exercise's solution in the cell that is left empty for it."""
    notebook = nbformat.read(path, as_version=4)
    at = next(i for i, cell in enumerate(notebook.cells) if "## Exercise" in cell.source)
    notebook.cells[at + 1].source = "\n".join(re.findall(r"```python\n(.*?)```", notebook.cells[at].source, re.DOTALL))
    nbformat.write(notebook, folder / path.name)
    notebook = execute(folder / path.name, profile)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source)


@pytest.fixture(scope="module")
def with_all_layers(tmp_path_factory):
    """They show some of the default model's 30 layers."""
    return write_speaker(tmp_path_factory.mktemp("speaker") / "speaker.gguf", 30)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, with_all_layers, monkeypatch, tmp_path):
    monkeypatch.setenv("SWARMKV_MODEL", str(with_all_layers))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # transformers takes no twin: 64 dimensions are not three heads'
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['transformers'] = None")
    run(path, "smoke", tmp_path)


@pytest.mark.real
@pytest.mark.thorough
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_as_a_reader_runs_it(path, tmp_path):
    run(path, "quick", tmp_path)


# -- their first cells, and copies to work in


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_links_to_those_around_it_and_to_itself(path):
    text, i = nbformat.read(path, as_version=4).cells[0].source, NOTEBOOKS.index(path)
    links = [f"Before: [{near.stem}]({near.stem}.ipynb)" for near in NOTEBOOKS[:i][-1:]]
    links += [f"Next: [{near.stem}]({near.stem}.ipynb)" for near in NOTEBOOKS[i + 1 :][:1]]
    assert re.findall(r"(?:Before|Next): \S+", text) == links
    assert text.count(f"/notebooks/{path.name})") == 2  # on Binder and on Colab


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_ends_with_an_exercise_and_an_empty_cell_to_type_in(path):
    cells = nbformat.read(path, as_version=4).cells
    (at,) = (i for i, cell in enumerate(cells) if "## Exercise" in cell.source)
    assert (cells[at + 1].cell_type, cells[at + 1].source) == ("code", "")
    assert all(cell.source.startswith("## Appendix") for cell in cells[at + 2 :])


def test_the_package_is_installed_only_where_it_is_not(monkeypatch):
    """The first lines of all notebooks, as IPython runs them, with and without the package."""
    from IPython.core.inputtransformer2 import TransformerManager

    cells = [next(one for one in nbformat.read(path, 4).cells if one.cell_type == "code") for path in NOTEBOOKS]
    (source,) = {re.search(r"try:\n(?: +.*\n|except.*\n)+", cell.source)[0] for cell in cells}
    asked = []

    class Shell:
        def run_line_magic(self, name, line):
            asked.append((name, line))
            if name == "run":
                monkeypatch.undo()  # it is there now

    cell = TransformerManager().transform_cell(source)
    exec(cell, {"get_ipython": Shell})
    assert asked == []
    monkeypatch.setitem(__import__("sys").modules, "swarmkv_lab", None)
    exec(cell, {"get_ipython": Shell})
    assert [name for name, _ in asked] == ["system", "cd", "run"]
    assert re.fullmatch(r"git clone --quiet https://\S+ swarmkv-lab", asked[0][1])
    assert (ROOT / asked[-1][1].split()[0]).name == "install.py"
