"""The project as a whole: its versions agree, its notebooks are executed and small, and it speaks of itself alone."""

import itertools
import json
import re
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from conftest import ROOT

from swarmkv_lab.fanout.strategies import STRATEGIES
from swarmkv_lab.files import REFERENCE
from swarmkv_studies.answers.quality import read_study
from swarmkv_studies.answers.questions import load_questions
from swarmkv_studies.answers.study import ARMS, INSTRUCTION, asked_hash, fingerprint
from swarmkv_studies.cli.steps import STEPS
from swarmkv_studies.common.measurements import machine, measurements
from swarmkv_studies.common.profiles import PROFILES

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def requirements() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], f"python{project['requires-python']}"]
    return dict(re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in lines)


def test_environment_yml_has_pyprojects_versions():
    lines = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    flat = [line for entry in lines for line in (entry["pip"] if isinstance(entry, dict) else [entry])]
    flat.remove("-e .[cluster]")  # the lab itself: Binder installs nothing else
    found = dict(re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in flat)
    found["xxhash"] = found.pop("python-xxhash")  # conda-forge's name for it
    assert {name: spec for name, spec in found.items() if name not in ("cxx-compiler", "pip")} == requirements()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_executed_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000
    assert "widgets" not in notebook.metadata
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert notebook.cells[0].source.count("?") >= 1  # it opens with a question


@pytest.mark.parametrize("path", [*NOTEBOOKS, ROOT / "README.md"], ids=lambda path: path.name)
def test_relative_links_lead_to_files(path):
    cells = nbformat.read(path, as_version=4).cells if path.suffix == ".ipynb" else []
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown") or path.read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (path.parent / link).is_file()] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_nothing_that_an_exercise_needs_is_closed(path):
    """Readers choose Run All Cells, and then do the exercise: no cell may close what it uses."""
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.source for cell in cells if cell.cell_type == "code" and ".close()" in cell.source] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_time_that_a_notebook_says_it_takes_is_measured(path):
    (said,) = re.findall(r"about (\d+) seconds in the quick profile", nbformat.read(path, 4).cells[0].source)
    measured = pd.read_csv(ROOT / "data/notebooks.csv").set_index("notebook").seconds[path.stem]
    assert abs(int(said) - measured) <= 5


def test_no_file_names_a_path_of_some_machine():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    folders = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp)/\w")
    for name in files or [str(path.relative_to(ROOT)) for path in ROOT.glob("swarmkv_lab/**/*.py")]:
        path = Path(ROOT / name)
        if path.suffix in {".py", ".md", ".ipynb", ".json", ".csv", ".toml", ".yml", ".svg"} and path.exists():
            assert not folders.search(path.read_text(encoding="utf-8")), name


# What make reference leaves where it is (the Makefile says why).
_STAYS = {"builds.csv"}


def test_the_reference_is_of_one_machine_and_one_model():
    """The formats are made of the model's published file, and the study asks a larger model too."""
    machines, models = {}, {}
    for path in REFERENCE.glob("*.csv"):
        machines.setdefault(tuple(pd.read_csv(path).machine.unique()), set()).add(path.name)
    for path in REFERENCE.glob("*.json"):
        about = measurements("reference").environment(path.name)
        assert (machine(about),) in machines, path.name
        models.setdefault((about["model_hash"], about["llama_cpp"]), set()).add(path.stem)
    (usual,) = max(machines, key=lambda one: len(machines[one]))
    assert {name for (one,), names in machines.items() if one != usual for name in names} <= _STAYS
    default = max(models, key=lambda one: len(models[one]))
    others = {stem for one, stems in models.items() if one != default for stem in stems}
    assert others <= {"formats", "study"}


def test_nothing_of_the_reference_rests_on_one_repetition():
    for path in REFERENCE.glob("*.csv"):
        runs = pd.read_csv(path)
        key = [name for name in ("strategy", "depth", "n_agents") if name in runs]
        if {"repeat", *key} <= set(runs) and len(key) == 3:
            assert runs.groupby(key).repeat.nunique().min() >= 2, path.name


def test_every_file_of_the_reference_is_measured_by_a_step():
    listed = [name for step in STEPS for name in step.files]
    assert len(listed) == len(set(listed))
    assert {path.name for path in REFERENCE.iterdir()} == {*listed, "builds.csv"}
    words = (ROOT / "data/README.md").read_text()
    assert [name for name in listed if f"`{name}`" not in words] == []
    stays = re.search(r"^STAYS := data/reference/(.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert {*stays} == _STAYS


def test_every_column_of_the_data_is_explained():
    words = (ROOT / "data/README.md").read_text()
    for path in (ROOT / "data/reference").glob("*.csv"):
        columns = path.read_text().splitlines()[0].split(",")
        assert not {column for column in columns if f"`{column}`" not in words}, path.name


def test_the_reference_grid_is_the_full_profiles_with_naive_everywhere():
    grid = pd.read_csv(ROOT / "data/reference/grid.csv")
    points = grid.groupby(["repeat", "depth", "n_agents"]).strategy.agg(sorted)
    assert set(points.index) == {tuple(this) for this in PROFILES["full"].rounds}
    assert all(found == sorted(STRATEGIES) for found in points)
    assert not grid.prefill_ms.duplicated().any()  # measured, each one
    exact = grid[grid.strategy != "batched"]
    assert exact.same_tokens.all()
    assert (exact.max_abs_logit_diff == 0).all()


def test_no_committed_file_is_large():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    large = {name: size for name in files if (size := (ROOT / name).stat().st_size) > 1_000_000}
    assert not large


def test_contributing_names_the_folders_that_there_are_in_the_order_of_their_imports():
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    named = [name.rstrip("/") for row in rows for name in re.findall(r"`([\w./]+)`", row)]
    package = ROOT / "swarmkv_lab"
    there = {path.name for path in package.iterdir() if path.name[0] not in "_." and path.suffix != ".pyi"}
    assert set(named) == there
    (layers,) = (
        contract["layers"]
        for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    assert [name.removesuffix(".py") for name in named] == layers


def test_the_study_is_whole_and_exact_strategies_give_naives_answers():
    """By both models, of today's questions over today's document; and twice, to the token."""
    frame = read_study(ROOT / "data/reference/study.csv")
    asked = [question.id for question in load_questions()]
    assert frame.model.nunique() == 2
    assert set(frame.arm) == set(ARMS)
    for _, rows in frame.groupby(["model", "repeat", "arm"]):
        assert sorted(rows.id) == sorted(asked)
    hashes = frame.set_index(["model", "repeat", "arm", "id"]).token_hash
    for model in frame.model.unique():
        for repeat, arm in itertools.product((0, 1), ("swarmkv", "pooled", "shared")):
            assert (hashes[model, repeat, arm][asked] == hashes[model, 0, "naive"][asked]).all()
    for about in json.loads((ROOT / "data/reference/study.json").read_text()).values():
        assert about["settings"]["questions_hash"] == asked_hash(load_questions())
        assert about["settings"]["document_hash"] == fingerprint((ROOT / "data/documents/dossier.md").read_text())
        assert about["settings"]["instruction"] == INSTRUCTION


def test_the_reviewer_reads_what_is_replaced():
    review = pd.read_csv(ROOT / "data/reference/review.csv", keep_default_na=False).set_index("agent")
    same = review.answer == review["if replaced"]
    assert not same[["security", "reviewer"]].any()
    assert same[["licence", "cost", "reliability"]].all()
