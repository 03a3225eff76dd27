"""What is committed: notebooks executed and small, links that lead somewhere, data that is whole and explained."""

import itertools
import json
import platform
import re
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from conftest import ROOT

import swarmkv_lab as lab
from swarmkv_lab.fanout.strategies import STRATEGIES
from swarmkv_lab.files import DATA, REFERENCE
from swarmkv_studies.answers.quality import read_study
from swarmkv_studies.answers.questions import load_questions
from swarmkv_studies.answers.study import ARMS, INSTRUCTION, asked_hash, fingerprint
from swarmkv_studies.common.measurements import measurements
from swarmkv_studies.common.profiles import PROFILES
from swarmkv_studies.many_machines.bench import cluster_table
from swarmkv_studies.naive_vs_fanout.article_table import CODE, LINK, TITLE

MEASURED = measurements("reference")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [*NOTEBOOKS, *ROOT.glob("*.md"), *ROOT.glob("book/*.md")]


def test_conda_installs_what_pip_does():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    flat = [line for entry in dependencies for line in (entry["pip"] if isinstance(entry, dict) else [entry])]
    lines = [line.partition(" ")[0].replace("python-xxhash", "xxhash") for line in flat]
    assert set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]) <= set(lines)


def test_the_citation_is_of_this_version_and_of_the_article():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], cited["repository-code"]) == (lab.__version__, project["urls"]["Repository"])
    article, code, _ = cited["references"]
    assert (article["title"], article["url"], code["repository-code"]) == (TITLE, LINK, CODE)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_executed_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    pictured = [
        any("image/png" in output.get("data", {}) for output in cell.get("outputs", ())) for cell in notebook.cells
    ]
    words = sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")
    assert (len(notebook.cells) <= 20, words <= 900, 4 * pictured.index(True) <= len(notebook.cells)) == (True,) * 3


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_relative_links_lead_to_files(path):
    cells = nbformat.read(path, as_version=4).cells if path.suffix == ".ipynb" else []
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown") or path.read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (path.parent / link).is_file()] == []


def test_no_committed_file_is_large_or_names_a_machine():
    named = re.compile(rf"(?<![\w.])/(?:home|root|Users|work|tmp)/\w|\"{re.escape(platform.node() or '/')}\"")
    committed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for path in filter(Path.exists, map(ROOT.joinpath, committed)):  # or removed, and not committed yet
        assert path.stat().st_size <= 1_000_000, path
        if path.suffix in {".py", ".md", ".ipynb", ".json", ".csv", ".toml", ".yml", ".svg"}:
            assert not named.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.csv")), ids=lambda path: path.name)
def test_a_file_of_the_reference_is_explained_of_one_machine_and_repeated(path):
    words, runs = (ROOT / "data/README.md").read_text(), pd.read_csv(path)
    assert [column for column in runs if f"`{column}`" not in words] == []
    assert f"`{path.name}`" in words
    parts = [runs] if path.name != "study.csv" else [rows for _, rows in runs.groupby("model")]  # its answers, no times
    assert [part.machine.nunique() for part in parts] == [1] * len(parts)
    key = ["strategy", "depth", "n_agents"]
    if {"repeat", *key} <= set(runs):
        assert runs.groupby(key).repeat.nunique().min() >= 2


def test_the_reference_grid_is_the_full_profiles_with_naive_everywhere():
    grid = pd.read_csv(REFERENCE / "grid.csv")
    points = grid.groupby(["repeat", "depth", "n_agents"]).strategy.agg(sorted)
    assert set(points.index) == {tuple(this) for this in PROFILES["full"].rounds}
    assert all(found == sorted(STRATEGIES) for found in points)
    assert not grid.prefill_ms.duplicated().any()  # measured, each one


GPU = DATA / "gpu"
RUNS = [REFERENCE / "grid.csv", *sorted(GPU.glob("*/bench.csv")), *sorted(GPU.glob("*/grid.csv"))]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_exact_strategies_have_naives_bits_and_tokens(path):
    runs = pd.read_csv(path)
    exact = runs[runs.strategy != "batched"]
    assert set(exact.strategy) == set(STRATEGIES) - {"batched"}
    assert exact.same_tokens.astype(bool).all()
    assert (exact.max_abs_logit_diff == 0).all()


def test_what_was_measured_on_a_gpu_is_of_one_gpu():
    said = [json.loads(path.read_text()) for path in GPU.glob("*/*.json")]
    assert len(said) == 6
    assert len({(one["gpu"], one["processor"]) for one in (about.get("environment", about) for about in said)}) == 1


# -- what the lab claims of many machines: bounds that the rows keep


def test_workers_answer_as_one_process_does_and_cost_little():
    table = cluster_table(MEASURED.cluster).set_index("crew")
    assert table.same.all()
    assert table.ratio["1 x 2"] <= 1.08


def test_what_is_shipped_is_what_was_computed():
    assert MEASURED.ship.same_bits.all()


def test_the_study_is_whole_and_exact_strategies_give_naives_answers():
    """By both models, of today's questions over today's document; and twice, to the token."""
    frame = read_study(REFERENCE / "study.csv")
    asked = [question.id for question in load_questions()]
    assert frame.model.nunique() == 2
    assert set(frame.arm) == set(ARMS)
    for _, rows in frame.groupby(["model", "repeat", "arm"]):
        assert sorted(rows.id) == sorted(asked)
    hashes = frame.set_index(["model", "repeat", "arm", "id"]).token_hash.sort_index()
    for model in frame.model.unique():
        for repeat, arm in itertools.product((0, 1), ("swarmkv", "pooled", "shared")):
            assert (hashes[model, repeat, arm][asked] == hashes[model, 0, "naive"][asked]).all()
    for about in json.loads((REFERENCE / "study.json").read_text()).values():
        assert about["settings"]["questions_hash"] == asked_hash(load_questions())
        assert about["settings"]["document_hash"] == fingerprint((ROOT / "data/documents/dossier.md").read_text())
        assert about["settings"]["instruction"] == INSTRUCTION
