"""Notebooks: each runs from top to bottom, on a twin that speaks and as a reader runs it; links and working copies."""

import copy
import re

import nbformat
import pytest
from conftest import ROOT, write_speaker

from swarmkv_lab.errors import SwarmKVError
from swarmkv_studies.cli.notebooks import copy_notebooks, execute, with_navigation

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def run(path, profile):
    notebook = execute(path, profile)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@pytest.fixture(scope="module")
def with_all_layers(tmp_path_factory):
    """They show some of the default model's 30 layers."""
    return write_speaker(tmp_path_factory.mktemp("speaker") / "speaker.gguf", 30)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, with_all_layers, monkeypatch):
    monkeypatch.setenv("SWARMKV_MODEL", str(with_all_layers))
    run(path, "smoke")


@pytest.mark.real
@pytest.mark.thorough
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_as_a_reader_runs_it(path):
    run(path, "quick")


# -- their first cells, and copies to work in

NAMES = ["01_first", "01b_between", "02_last"]


def notebook(code="%matplotlib inline\nimport swarmkv_lab as lab\nimport swarmkv_studies as studies"):
    cells = [nbformat.v4.new_markdown_cell("# What is it?\n\nWords."), nbformat.v4.new_code_cell(code)]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_its_links_and_first_lines(path):
    committed = nbformat.read(path, as_version=4)
    current = with_navigation(copy.deepcopy(committed), path.stem, [other.stem for other in NOTEBOOKS])
    assert [cell.source for cell in current.cells] == [cell.source for cell in committed.cells], "run make navigation"


def test_the_package_is_installed_only_where_it_is_not(monkeypatch):
    """The first cell, as IPython runs it, with and without the package."""
    from IPython.core.inputtransformer2 import TransformerManager

    source = with_navigation(notebook(), "01_first", NAMES).cells[1].source
    assert source.endswith("import swarmkv_lab as lab\n\nimport swarmkv_studies as studies")
    asked = []

    class Shell:
        def run_line_magic(self, name, line):
            asked.append((name, line))
            if name == "run":
                monkeypatch.undo()  # it is there now

    cell = TransformerManager().transform_cell(source)
    exec(cell, {"get_ipython": Shell})
    assert asked == [("matplotlib", "inline")]
    monkeypatch.setitem(__import__("sys").modules, "swarmkv_lab", None)
    exec(cell, {"get_ipython": Shell})
    assert [name for name, _ in asked[1:]] == ["matplotlib", "system", "cd", "run"]
    assert re.fullmatch(r"git clone --quiet https://\S+ swarmkv-lab", asked[2][1])
    assert (ROOT / asked[-1][1].split()[0]).name == "install.py"


def test_a_notebook_that_does_not_import_the_lab_first_is_refused():
    with pytest.raises(SwarmKVError, match="01_first"):
        with_navigation(notebook("import numpy"), "01_first", NAMES)


def test_working_copies_follow_their_originals_until_the_reader_changes_them(tmp_path):
    originals, work = [tmp_path / "mine.ipynb", tmp_path / "theirs.ipynb"], tmp_path / "work"

    def copied(text=None):
        """Both copies' texts, and the names that were kept, after the originals were given a text."""
        for path in originals if text else ():
            path.write_text(text)
        kept = copy_notebooks(originals, work)
        return *((work / path.name).read_text() for path in originals), kept

    assert copied("first") == ("first", "first", [])
    (work / "mine.ipynb").write_text("the reader's")
    assert copied() == ("the reader's", "first", [])  # nothing to say: the original is the one that was copied
    assert copied("second") == ("the reader's", "second", ["mine.ipynb"])
    (work / "mine.ipynb").unlink()
    assert copied() == ("second", "second", [])
