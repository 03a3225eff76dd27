"""Every notebook runs from top to bottom: in the smoke profile, and in the quick one that a reader gets."""

import pytest
from conftest import ROOT

from swarmkv_studies.cli.reproduce import execute

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.real
@pytest.mark.parametrize("profile", ["smoke", pytest.param("quick", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, profile):
    notebook = execute(path, profile)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
