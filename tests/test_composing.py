"""Composing: the study over a model that speaks without sense, what is computed of it, and the figures."""

import numpy as np
import pandas as pd
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_studies.answers.questions import load_questions
from swarmkv_studies.composing.study import ARMS, FULL, ROLES

TEXT = "# Report\n\n## 1. Keys\n\n" + "The key is blue. " * 12 + "\n\n## 2. Costs\n\n" + "It costs nine. " * 12
TWO = "two documents, swapped"
NAMES = [FULL, "document first", "behind nothing, k = 8", "behind nothing, 32 in the middle"]
NAMES += [f"{TWO}: full", f"{TWO}: apart, k = 0"]


@pytest.fixture(scope="module")
def asked():
    return [studies.Question(f"q{i}", "cost", "easy", f"What is number {i}?", [["nine"]], ["1", "2"]) for i in range(4)]


@pytest.fixture(scope="module")
def answers(speaker, asked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("composed")
    (folder / "report.md").write_text(TEXT)
    how = {"n_parts": 1, "max_tokens": 3, "path": folder / "composed.csv"}
    studies.composed_study(speaker, asked, folder / "report.md", arms=NAMES[:2], **how)
    return studies.composed_study(speaker, asked, folder / "report.md", arms=NAMES, **how)


def test_each_agent_is_asked_with_its_role_and_computes_what_is_its_own(speaker, answers):
    rows = answers.astype({"own_tokens": int, "kl": float}).set_index(["arm", "id"])
    document = len(speaker.document(TEXT))
    assert list(rows.loc[FULL].sort_index().role) == [*ROLES, "short"]
    own = rows.own_tokens - rows.role.map({name: len(speaker.head(role)) for name, role in ROLES.items()})
    question = own[FULL] - document
    assert set(question) <= set(range(20, 60))
    assert (own["behind nothing, k = 8"] == question + 8).all()
    assert (own["behind nothing, 32 in the middle"] == question + 32).all()
    assert list(rows.loc[f"{TWO}: full"].index) == ["q0"]
    assert (rows.kl[[FULL]] == 0).all()


def test_a_full_prefill_elsewhere_is_the_floor_and_a_document_all_recomputed_too(speaker, asked, tmp_path, monkeypatch):
    """Then nothing is left of what the cells were computed behind."""
    (tmp_path / "report.md").write_text(TEXT)
    document = len(speaker.document(TEXT))
    monkeypatch.setitem(ARMS, "all", ARMS["behind nothing, k = 8"]._replace(recompute=document))
    frame = studies.composed_study(
        speaker, asked, tmp_path / "report.md", arms=["all", "full, 64 positions on"], n_parts=1, max_tokens=3
    )
    assert frame.kl.max() < 1e-3


def test_quality_counts_against_the_reference_of_the_same_prompt():
    rows = [
        (arm, f"q{i}", f"{i}{same}", i != 1 or same, kl * (1 + i % 2))
        for arm, same, kl in ((FULL, 1, 0.0), ("behind nothing, k = 0", 0, 0.1))
        for i in range(4)
    ]
    scored = pd.DataFrame(rows, columns=["arm", "id", "token_hash", "right", "kl"])
    scored = scored.assign(model="m", own_tokens=7).astype({"right": bool})
    found = studies.composed_quality(scored).set_index("arm").loc["behind nothing, k = 0"]
    assert (found.changed, found.became_right, found.became_wrong, found.p) == (4, 0, 1, 1)
    assert (found.right, found.n, found.own_tokens) == (3, 4, 7)
    assert found.kl == pytest.approx(0.15)
    assert found.kl_low <= found.kl <= found.kl_high


def test_rounds_count_what_is_computed(speaker):
    document = np.resize(speaker.document(TEXT), 80)
    runs = studies.composed_rounds(speaker, document, repeats=1, n_agents=3, max_tokens=2)
    computed = runs.set_index("strategy").computed_tokens
    first = len(speaker.head(next(iter(studies.role_agents(1).values()))[0]))
    assert computed["naive"] - computed["composed"] == 2 * 80 - 3 * 32 - first
    assert computed["composed, packed"] == computed["composed"]
    with pytest.raises(lab.SwarmKVError, match="9"):
        studies.role_agents(9)


def test_cells_are_farther_from_the_agents_own_the_nearer_they_are_to_the_seam(real):
    seam = studies.composed_seam(real, 64).set_index(["behind", "first"]).error
    assert seam["nothing", 0] > 2 * seam["another role", 0]
    assert seam["another role", 0] > seam["another role", 32]
    assert seam["its own role, 64 positions on"].max() < seam["a neutral prompt"].min()


def test_the_committed_rounds_show_eight_agents_end_to_end():
    runs = studies.measurements("reference").composed_rounds
    gains = studies.speedups(runs).loc[3501, 8]
    assert (gains["median"][["composed", "composed, packed"]] > 5).all()
    assert (runs[runs.strategy == "composed"].share_ms < 1).all()
    assert not runs.copied_bytes.any()


def test_the_figures_say_what_the_committed_data_say():
    source = studies.measurements("reference")
    quality = studies.composed_quality(studies.score(source.composed))
    two = quality.arm.str.startswith("two documents")
    assert set(quality.arm) == set(ARMS)
    assert set(quality.n[~two]) == {len(load_questions())}
    figure = studies.composed_quality_figure(quality)
    assert f"{quality.set_index('arm').kl['document first']:.2g}" in figure.get_label()
    assert "35%" in studies.composed_seam_figure(source.composed_seam).get_label()
    widget = studies.RightAligned(1000)
    before = widget.picture.value
    widget.role.value = 60
    assert widget.picture.value != before
