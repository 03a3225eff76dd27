"""Every notebook runs from top to bottom: on a twin that speaks in the smoke profile, and as a reader runs it."""

import pytest
from conftest import ROOT

from swarmkv_studies.cli.notebooks import execute

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def run(path, profile):
    notebook = execute(path, profile)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, speaker_path, monkeypatch):
    monkeypatch.setenv("SWARMKV_MODEL", str(speaker_path))
    run(path, "smoke")


@pytest.mark.real
@pytest.mark.thorough
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_as_a_reader_runs_it(path):
    run(path, "quick")
