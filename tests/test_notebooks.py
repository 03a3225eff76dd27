"""Every notebook runs from top to bottom in the quick profile."""

import pytest
from conftest import ROOT

from swarmkv_lab.cli.reproduce import execute

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.real
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path):
    notebook = execute(path, "quick")
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
