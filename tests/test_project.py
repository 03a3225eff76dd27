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

from swarmkv_lab.analysis.clock import corrected
from swarmkv_lab.analysis.quality import accuracy, differences, read_study
from swarmkv_lab.analysis.questions import load_questions
from swarmkv_lab.analysis.score import score
from swarmkv_lab.analysis.summary import share_of_bound
from swarmkv_lab.fanout.strategies import STRATEGIES
from swarmkv_lab.measure.profiles import PROFILES
from swarmkv_lab.measure.study import ARMS, INSTRUCTION, asked_hash, fingerprint

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


def test_the_readmes_table_is_the_reference_measurement():
    summary = json.loads((ROOT / "data/reference/bench.json").read_text())["summary"]
    readme = (ROOT / "README.md").read_text()
    for name, row in summary.items():
        same = "all" if row["same_tokens"] else "not all"
        cells = [
            f"`{name}`",
            f"{row['activation_ms']:,.1f}",
            f"{row['ttft_ms']:,.0f}",
            f"{row['end_to_end_ms']:,.0f}",
            f"{row['ttft_speedup']:.0f}x",
            f"{row['end_to_end_speedup']:.2f}x",
            f"{row['raw_end_to_end_speedup']:.2f}x",
            f"{row['kv_bytes'] / 1e6:.0f} MB",
            f"{row['max_abs_logit_diff']:.2g}",
            same,
        ]
        assert f"| {' | '.join(cells)} |" in readme, f"| {' | '.join(cells)} |"


def test_the_readmes_times_of_a_snapshot_file_are_measured():
    times = json.loads((ROOT / "data/reference/snapshot_file.json").read_text())["snapshot_file"]
    words = " ".join((ROOT / "README.md").read_text().split())
    assert f"`load` of the {times['bytes'] / 1e6:.1f} MB with all its checks takes {times['load_ms']:.0f} ms" in words
    assert f"and `restore` {times['restore_ms']:.0f} ms. Together this is {times['ratio']:.1f} times as long" in words


def test_what_the_readme_says_of_the_clock_is_measured():
    runs = pd.read_csv(ROOT / "data/reference/clock.csv")
    rounds, benches = share_of_bound(runs, rounds=1), share_of_bound(runs).set_index("n_agents").loc[4]

    def between(values):
        return f"{100 * values.min():.0f} to {100 * values.max():.0f} %"

    assert_said(
        f"{len(rounds)} rounds of `naive` and `shared` (1,024 tokens; 2, 4, 8 and 16 agents) found "
        f"{between(rounds.raw)} of the bound as measured, and {between(rounds.corrected)} corrected; {len(benches)} "
        f"benches in a row of two rounds each, with four agents, found {between(benches.raw)} and "
        f"{between(benches.corrected)}"
    )
    assert benches.corrected.max() / benches.corrected.min() <= 1.05
    assert (share_of_bound(runs).groupby("n_agents").corrected.median() >= 0.97).all()


def test_what_the_readme_says_of_weights_is_measured():
    formats = pd.read_csv(ROOT / "data/reference/formats.csv").set_index("format")
    ours, source = formats.loc["q8_0"], formats[formats.is_source].iloc[0]
    assert_said(
        f"3,501 tokens take {ours.prefill_ms / 1e3:.1f} s instead of {source.prefill_ms / 1e3:.1f}, a question of 12 "
        f"tokens after them {ours.branch_ms:.0f} ms instead of {source.branch_ms:.0f}, and each further token "
        f"{ours.token_ms:.0f} ms instead of {source.token_ms:.0f}. The predictions change by a KL of {ours.kl_mean:.4f}"
    )


def test_what_the_readme_says_of_flash_attention_is_measured():
    tuned = pd.read_csv(ROOT / "data/reference/tuning.csv").set_index("flash_attn")
    off, on, prefill = (tuned.loc[name] for name in ("False", "True", "prefill"))
    assert_said(
        f"At 3,501 tokens the prefill takes {prefill.prefill_ms / 1e3:.1f} s instead of {off.prefill_ms / 1e3:.1f}, "
        f"and a question {prefill.branch_ms:.0f} ms; with flash attention throughout it takes {on.branch_ms:.0f}"
    )


def test_what_the_readme_says_of_batched_is_measured():
    runs = pd.concat([pd.read_csv(ROOT / f"data/reference/{name}.csv") for name in ("peers_1024", "peers_3501")])
    packed = runs[(runs.strategy == "batched") & (runs.n_agents > 1)]
    total, changed = packed.n_agents.sum(), (packed.n_agents - packed.same_answers).sum()
    first = packed.first_difference.median() + 1
    assert_said(
        f"of {total} answers {changed} change ({changed / total:.0%}), and a run's first change is at token "
        f"{first:.0f} (median"
    )


@pytest.mark.parametrize(("depth", "names"), [
    (1024, "naive server_cold server_unified server_warm llama_prefix transformers shared batched"),
    (3501, "naive server_warm transformers shared batched"),
])  # fmt: skip
def test_the_readmes_comparisons_with_peers_are_measured_more_than_once(depth, names):
    runs = corrected(pd.read_csv(ROOT / f"data/reference/peers_{depth}.csv"))
    assert runs.groupby(["strategy", "n_agents"]).repeat.nunique().min() >= 2
    readme = (ROOT / "README.md").read_text()
    for name in names.split():
        seconds = runs[runs.strategy == name].groupby("n_agents").end_to_end_ms.median() / 1e3
        cells = [f"{seconds[n]:.1f}" for n in (1, 4, 8)]
        assert f"| {' | '.join(cells)} |" in readme, (name, cells)


def test_what_the_readme_says_of_all_at_once_is_measured():
    runs = corrected(pd.read_csv(ROOT / "data/reference/peers_1024.csv"))
    total = runs.groupby(["strategy", "n_agents"]).end_to_end_ms.median()
    four, eight = total["server_cold"][[4, 8]] / total["batched"][[4, 8]]
    assert_said(f"`batched` ends {four:.1f} times (four agents) and {eight:.1f} times (eight) as early as llama-server")


def assert_said(sentence):
    assert sentence in " ".join((ROOT / "README.md").read_text().split()), sentence


def test_every_column_of_the_data_is_explained():
    words = (ROOT / "data/README.md").read_text()
    for path in (ROOT / "data/reference").glob("*.csv"):
        columns = path.read_text().splitlines()[0].split(",")
        named = {re.sub("_beats$", "_ms", column) for column in columns}  # the beats of a time are explained once
        assert not {column for column in named if f"`{column}`" not in words}, path.name


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


def test_what_the_readme_says_of_the_answers_is_measured():
    scored = score(read_study(ROOT / "data/reference/study.csv"))
    rates = accuracy(scored[scored.repeat == 0]).set_index(["model", "arm"])
    small, large = (rates.loc[model, "naive"] for model in scored.model.unique())
    changes = (
        differences(scored[scored.repeat == 0]).groupby("arm")[["n", "changed", "became_right", "became_wrong"]].sum()
    )
    assert_said(
        f"Of {small.n:.0f} questions over the dossier, SmolLM2-135M answers {small.right:.0f} right, and "
        f"Qwen2.5-Coder-0.5B {large.right:.0f}"
    )
    for arm, subject in {
        "batched": "`batched` changes",
        "flash attention": "Flash attention changes",
        "KV in q8_0": "a KV cache in q8_0",
        "KV in q4_0": "one in q4_0",
    }.items():
        row = changes.loc[arm]
        assert_said(
            f"{subject} {row.changed} of {row.n}, of which {row.became_right} become right and {row.became_wrong} wrong"
        )


def test_the_reviewer_reads_what_is_replaced():
    review = pd.read_csv(ROOT / "data/reference/review.csv", keep_default_na=False).set_index("agent")
    same = review.answer == review["if replaced"]
    assert not same[["security", "reviewer"]].any()
    assert same[["licence", "cost", "reliability"]].all()


def test_what_the_readme_says_of_builds_is_measured():
    """OpenBLAS: "three times slower"; link-time optimisation: "a few percent"."""
    builds = pd.read_csv(ROOT / "data/reference/builds.csv")
    medians = builds[builds.work == "prefill"].groupby(["build", "flash_attn"]).tokens_per_s.median()
    for flash_attn in (False, True):
        assert 2.5 < medians["default", flash_attn] / medians["GGML_BLAS=ON, OpenBLAS", flash_attn] < 3.5
        assert 0.9 < medians["default", flash_attn] / medians["GGML_LTO=ON", flash_attn] < 1.1
