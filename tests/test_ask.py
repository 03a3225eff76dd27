"""prefill, ask, inspect: a document is read once, and asked in another process."""

import json
import shlex
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
from conftest import ROOT
from matplotlib.figure import Figure

import swarmkv_lab as lab
from swarmkv_studies.cli import main

NAME = "doc.kv.safetensors"
QUESTIONS = ["Which licence is a risk?", "What does an invoice say?"]


@pytest.mark.real
def test_prefill_today_in_one_process_and_ask_tomorrow_in_another(tmp_path, capsys):
    path = str(tmp_path / NAME)
    command = [sys.executable, "-m", "swarmkv_lab", "prefill", "--document", "dossier", "--depth", "100"]
    done = subprocess.run([*command, "--out", path], capture_output=True, text=True, check=True)
    assert "100 tokens" in done.stdout
    answers = {}
    for strategy in lab.STRATEGIES:
        assert main(["ask", path, *QUESTIONS, "--strategy", strategy, "--max-tokens", "4", "--json", "-"]) == 0
        answers[strategy] = json.loads(capsys.readouterr().out)
    exact = [answers[name]["tokens"] for name in ("naive", "swarmkv", "pooled", "shared")]
    assert exact[0] == exact[1] == exact[2] == exact[3]
    assert len(answers["batched"]["answers"]) == 2
    assert main(["ask", path, QUESTIONS[0], "--max-tokens", "3"]) == 0
    said = capsys.readouterr().out
    assert f"> {QUESTIONS[0]}\n" in said
    assert "100 tokens restored, first token after" in said


@pytest.fixture
def my_pdf(tmp_path):
    """A PDF, and the cache folder of somebody who has the model and nothing else."""
    figure = Figure()
    figure.text(0.1, 0.5, "The keeper is Ada Lind. A visit costs 12 euros.")
    figure.savefig(tmp_path / "my.pdf")
    return tmp_path / "my.pdf"


@pytest.mark.real
def test_a_pdf_is_read_kept_and_answered_by_three_agents_in_one_command(my_pdf, real, tmp_path, monkeypatch, capsys):
    questions = ["Who is the keeper?", "What does a visit cost?", "Where is it?"]
    tokens = real.read(lab.load_document(my_pdf))
    expected = lab.fan_out(real, tokens, questions, max_tokens=4)
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path / "cache"))
    command = ["ask", "--document", str(my_pdf), "--model", str(real.path), "--max-tokens", "4"]
    assert main([*command, *questions, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["answers"] == list(expected.answers.values())
    monkeypatch.setattr(lab.Context, "decode", lambda *_, **__: pytest.fail("what was kept is read again"))
    assert lab.prefill(real, tokens, cache=True).tokens.tolist() == tokens.tolist()


@pytest.mark.real
def test_the_readmes_way_to_ones_own_pdf(my_pdf, tmp_path, monkeypatch, capsys):
    section = (ROOT / "README.md").read_text().split("## Your own document, your own model\n")[1].split("\n## ")[0]
    shell, cells = (section.split(f"```{language}\n")[1].split("```")[0] for language in ("sh", "python"))
    monkeypatch.chdir(tmp_path)
    program, *command = shlex.split(shell.splitlines()[0])
    assert program == ".venv/bin/swarmkv-lab"
    assert main([*command, "--max-tokens", "3", "--json", "-"]) == 0
    three = json.loads(capsys.readouterr().out)["answers"]
    *lines, last = cells.replace("max_tokens=64", "max_tokens=3").strip().splitlines()
    names = {}
    exec("\n".join(lines), names)
    assert list(eval(last, names).values()) == three
    names["model"].close()
    assert len(three) == 3


@pytest.mark.real
def test_how_much_of_a_document_is_read(my_pdf, real, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("swarmkv_studies.cli.snapshots.open_model", lambda *_: nullcontext(real))
    command = ["ask", "--document", str(my_pdf), "why?", "--max-tokens", "2"]
    n = len(real.read(lab.load_document(my_pdf)))
    for depth, read in (([], n), (["--depth", "5"], 5), (["--depth", "900"], n)):
        assert main([*command, *depth]) == 0
        said = capsys.readouterr()
        assert f"{read} tokens restored" in said.out
        assert "are read" not in said.err
    monkeypatch.setattr(real, "n_ctx_train", 10 + len(real.ask("why?")) + 2)
    assert main(command) == 0
    said = capsys.readouterr()
    assert "10 tokens restored" in said.out
    assert f"my.pdf has {n} tokens, and the first 10 are read" in said.err


def test_inspect_needs_no_model(twin, document, tmp_path, capsys):
    lab.prefill(twin, document).save(tmp_path / NAME)
    assert main(["inspect", str(tmp_path / NAME)]) == 0
    said = capsys.readouterr().out
    for words in ("tokens           300", "model_name       twin", "kv_type", "created", "whole: both checksums"):
        assert words in said
    assert main(["inspect", str(tmp_path / NAME), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 300


def test_inspect_of_a_damaged_file(twin, document, tmp_path, capsys):
    path = tmp_path / NAME
    lab.prefill(twin, document).save(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert main(["inspect", str(path)]) == 2
    assert "it was damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask", "nowhere.kv.safetensors", "why?"], "nowhere.kv.safetensors could not be read: No such file"),
        (["inspect", "/proc"], "could not be read"),
        (["ask", "my.pdf", "why?"], "ask about a document with --document my.pdf"),
        (["ask", NAME], "there is no question: write at least one"),
        (["ask", "--document", "dossier"], "there is no question: write at least one"),
        (["ask", "--document", "nowhere.pdf", "why?"], "nowhere.pdf' is neither a file nor one of"),
        (["ask", "--document", "dossier", "why?", "--depth", "0"], "--depth: 0 is not a whole number from 1"),
        (["ask", NAME, "why?", "--depth", "9"], "--depth is for --document"),
        (
            ["prefill", "--document", "dossier", "--out", "x", "--depth", "99999"],
            "--depth: 99,999 is too much, the document has",
        ),
        (["prefill", "--document", "dossier", "--out", "x", "--kv-type", "f17"], "KV type 'f17'"),
    ],
)
@pytest.mark.real
def test_what_cannot_be_done_is_one_line(arguments, words, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


@pytest.mark.real
def test_another_models_file_is_named(twin, real, document, tmp_path, capsys):
    lab.prefill(twin, document).save(tmp_path / NAME)
    assert main(["ask", str(tmp_path / NAME), "why?"]) == 2
    assert f"the snapshot has model 'twin {twin.content_hash[:12]}'" in capsys.readouterr().err


def test_fan_out_over_a_snapshot_never_prefills(twin, document, question):
    snapshot = lab.prefill(twin, document, kv_type="bf16")
    naive = lab.fan_out(twin, snapshot, [question, question[:5]], "naive", kv_type="bf16", max_tokens=4)
    for strategy in ("swarmkv", "pooled", "shared", "batched"):
        run = lab.fan_out(twin, snapshot, [question, question[:5]], strategy, max_tokens=4)
        assert "prefill" not in set(run.timeline.phase)
        assert run.metrics["prefill_ms"] == 0
        if strategy != "batched":
            assert (run.compare(naive).max_abs_logit_diff == 0).all()
            assert run.compare(naive).same_tokens.all()
    assert (naive.timeline.phase == "prefill").sum() == 2
    np.testing.assert_array_equal(naive.tokens, document)
