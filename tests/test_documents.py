"""Documents: bundled or yours, UTF-8 and not empty, with findings that stand where they are said to stand."""

import json

import pytest
from conftest import ROOT

import swarmkv_lab as lab


def test_every_planted_finding_can_be_quoted():
    text = lab.load_document("dossier")
    findings = json.loads((ROOT / "data/documents/dossier.findings.json").read_text())
    assert {"security", "licence", "cost", "reliability"} <= {finding["agent"] for finding in findings}
    for finding in findings:
        assert text.count(finding["quote"]) == 1, finding


def test_the_dossiers_agents():
    agents = lab.load_agents("dossier")
    assert list(agents)[:4] == ["security", "licence", "cost", "reliability"]
    assert len(agents) == 8


def test_a_file_of_yours(tmp_path):
    (tmp_path / "mine.txt").write_text("hello", encoding="utf-8")
    assert lab.load_document(tmp_path / "mine.txt") == "hello"


def test_documents_that_cannot_be_read(tmp_path):
    (tmp_path / "latin").write_bytes("é".encode("latin-1") * 3)
    (tmp_path / "empty").write_text(" \n")
    for name, message in (("latin", "not UTF-8: .* at byte 0"), ("empty", "is empty"), ("absent", "dossier")):
        with pytest.raises(lab.SwarmKVError, match=message):
            lab.load_document(tmp_path / name)
    with pytest.raises(lab.SwarmKVError, match="no agents"):
        lab.load_agents("article")
