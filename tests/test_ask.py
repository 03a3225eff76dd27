"""ask and cache: a document is read once, and asked in another process."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
from conftest import ROOT
from matplotlib.figure import Figure

import swarmkv_lab as lab
from swarmkv_lab.cli.commands import ask
from swarmkv_studies.cli import main

NAME = "doc.kv.safetensors"
QUESTIONS = ["Which licence is a risk?", "What does an invoice say?"]


@pytest.mark.real
def test_a_document_saved_today_in_one_process_is_asked_tomorrow_in_another(tmp_path, capsys):
    path = str(tmp_path / NAME)
    program = [sys.executable, "-m", "swarmkv_studies"]
    subprocess.run([*program, "cache", "save", path, "--document", "dossier", "--depth", "100"], check=True, cwd=ROOT)
    answers = {}
    for strategy in lab.STRATEGIES:
        assert main(["ask", path, *QUESTIONS, "--strategy", strategy, "--max-tokens", "4", "--json", "-"]) == 0
        answers[strategy] = json.loads(capsys.readouterr().out)
    exact = [answers[name]["tokens"] for name in ("naive", "swarmkv", "pooled", "shared")]
    assert exact[0] == exact[1] == exact[2] == exact[3]
    assert len(answers["batched"]["answers"]) == 2
    assert {answer["depth"] for answer in answers.values()} == {100}


@pytest.mark.parametrize("arguments", [
    [NAME, "--threads", "1", "why?"], ["--threads", "1", NAME, "why?"], [NAME, "why?", "--threads", "1"],
    ["--threads=1", "--", NAME, "why?"],
])  # fmt: skip
def test_options_come_anywhere(arguments):
    asked = ask.make_context("ask", arguments).params
    assert (asked["words"], asked["threads"], asked["document"]) == ((NAME, "why?"), 1, None)


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
    command = ["ask", questions[0], "--document", str(my_pdf), "--model", str(real.path), "--max-tokens", "4"]
    program, env = [sys.executable, "-m", "swarmkv_studies"], os.environ | {"NO_COLOR": "1"}
    done = subprocess.run([*program, *command, *questions[1:]], capture_output=True, text=True, cwd=ROOT, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    pairs = zip(questions, expected.answers.values(), strict=True)
    assert done.stdout.startswith("".join(f"> {question}\n{answer.strip()}\n\n" for question, answer in pairs))
    assert not set("\r\x1b") & set(done.stdout)
    monkeypatch.setattr(lab.Context, "decode", lambda *_, **__: pytest.fail("what was kept is read again"))
    assert lab.prefill(real, tokens, cache=True).tokens.tolist() == tokens.tolist()


@pytest.mark.real
def test_how_much_of_a_document_is_read(my_pdf, real, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lab, "load_model", lambda *_, **__: nullcontext(real))
    command = ["ask", "--document", str(my_pdf), "why?", "--max-tokens", "2", "--model", str(real.path), "--json", "-"]
    n = len(real.read(lab.load_document(my_pdf)))
    for depth, read in (([], n), (["--depth", "5"], 5), (["--depth", "900"], n)):
        assert main([*command, *depth]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["depth"] == read
        assert said.err == ""
    monkeypatch.setattr(real, "n_ctx_train", 10 + len(real.ask("why?")) + 2)
    assert main(command) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["depth"] == 10
    assert said.err.count("\n") == 1
    assert f"{n} tokens" in said.err
    assert main(["cache", "save", str(tmp_path / NAME), "--model", str(real.path), "--depth", "99999"]) == 2
    assert "99,999" in capsys.readouterr().err


def test_show_needs_no_model_and_refuses_a_damaged_file(twin, document, tmp_path, capsys):
    path = tmp_path / NAME
    lab.prefill(twin, document).save(path)
    assert main(["cache", "show", str(path)]) == 0
    assert "300" in capsys.readouterr().out.splitlines()[0]
    assert main(["cache", "show", str(path), "--json", "-"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["tokens"], about["model_name"]) == (300, "twin")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert main(["cache", "show", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.real
def test_another_models_file_is_named(twin, real, document, tmp_path, capsys):
    lab.prefill(twin, document).save(tmp_path / NAME)
    assert main(["ask", str(tmp_path / NAME), "why?"]) == 2
    assert f"twin {twin.content_hash[:12]}" in capsys.readouterr().err
