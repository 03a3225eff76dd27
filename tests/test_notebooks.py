"""Every notebook runs from top to bottom: on a twin that speaks in the smoke profile, and as a reader runs it."""

import pytest
from conftest import ROOT, write_speaker

from swarmkv_studies.cli.notebooks import execute

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
