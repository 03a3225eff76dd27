"""swarmkv-lab: tables for people, JSON for programs, one line and exit 2 for anything bad."""

import json

import numpy as np
import pandas as pd
import pytest

import swarmkv_lab as lab
from swarmkv_lab import files
from swarmkv_lab.cli import main
from swarmkv_lab.measure import tuning


@pytest.mark.real
def test_bench_prints_a_table_and_writes_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("swarmkv_lab.measure.bench._is_steady", lambda _runs: True)  # whatever the machine does
    out = tmp_path / "bench.json"
    arguments = "bench --depth 64 --agents 2 --strategies naive,pooled,shared --repeats 2 --max-tokens 3 --threads 2"
    assert main([*arguments.split(), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "end to end x" in printed
    assert "ratio" in printed
    report = json.loads(out.read_text())
    assert len(report["runs"]) == 6
    assert len(report["runs"][0]["agents"]) == 2
    assert report["environment"]["n_threads"] == 2
    for key in ("activation_speedup", "ttft_speedup", "end_to_end_speedup", "end_to_end_bound", "max_abs_logit_diff"):
        assert isinstance(report["summary"]["shared"][key], float), key
    assert report["summary"]["shared"]["same_tokens"] is True


@pytest.mark.parametrize(
    "arguments",
    [
        "bench --strategies magic --depth 10",
        "bench --depth 0",
        "bench --depth 100000",
        "bench --agents 0 --depth 10",
        "bench --max-tokens -1 --depth 10",
        "bench --threads 0 --depth 10",
        "bench --repeats 0 --depth 10",
        "bench --depth 10 --model nowhere.gguf",
        "bench --depth 10 --document nowhere.md",
        "bench --depth 10 --json nowhere/bench.json",
        "bench --depth 10 --weights q9_0",
        "bench --depth 10 --weights q8_0,q4_0",
        "bench --depth 10 --weights common",
        "bench --depth 10 --tune --weights q8_0,q9_0",
        "pipeline dossier --weights q9_0",
        "model nowhere.gguf",
        "model kimi-k2",
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(arguments, capsys):
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("swarmkv-lab: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", ["", "nonsense", "bench --depth many", "reproduce --profile huge"])
def test_arguments_that_argparse_refuses(arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments.split())
    assert exit_.value.code == 2


@pytest.fixture
def asked_in_bench(monkeypatch, tmp_path, twin):
    """What bench is asked with, on a twin that stands for every model."""
    asked = {}

    def bench(model, tokens, **how):
        asked.update(how, name=model.name, geometry=model.geometry)
        raise lab.SwarmKVError("asked")

    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(lab, "bench", bench)
    monkeypatch.setattr(lab, "load_document", lambda name: "text")
    monkeypatch.setattr(lab.Model, "tokenize", lambda model, text: np.arange(64, dtype=np.int32))
    return asked


def test_weights_requantizes_the_model_first(asked_in_bench, twin):
    assert main(["bench", "--depth", "32", "--model", str(twin.path), "--weights", "q8_0"]) == 2
    assert asked_in_bench["name"] == "twin.Q8_0"
    assert asked_in_bench["geometry"] == twin.geometry


@pytest.mark.parametrize(("n_tokens", "depth"), [(64, 64), (4000, 3501)])
def test_bench_reads_3501_tokens_or_all_of_a_shorter_document(asked_in_bench, twin, monkeypatch, n_tokens, depth):
    monkeypatch.setattr(lab.Model, "tokenize", lambda model, text: np.arange(n_tokens, dtype=np.int32))
    assert main(["bench", "--model", str(twin.path)]) == 2
    assert asked_in_bench["depth"] == depth


@pytest.mark.filterwarnings("ignore:.*are in a larger format")
def test_tune_chooses_among_weights_and_the_bench_runs_in_the_fastest(asked_in_bench, twin, monkeypatch, capsys):
    fast = {"twin": 3.0, "twin.Q8_0": 1.0, "twin.Q4_0": 2.0}
    monkeypatch.setattr(tuning, "time_work", lambda ctx, tokens, beat: 2 * (np.full(3, fast[ctx.model.name]),))
    arguments = ["bench", "--depth", "32", "--model", str(twin.path), "--threads", "1", "--tune"]
    assert main([*arguments, "--weights", "q4_0,q8_0"]) == 2
    assert asked_in_bench["name"] == "twin.Q8_0"
    assert asked_in_bench["n_threads"] == 1
    assert "in q8_0: twin.Q8_0" in capsys.readouterr().out
    assert main(arguments) == 2
    assert asked_in_bench["name"] == "twin"


def test_model_prints_the_path(twin, capsys):
    assert main(["model", str(twin.path)]) == 0
    assert capsys.readouterr().out == f"{twin.path}\n"


# -- answers


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.json"
    rows = [
        {"id": "fee", "kind": "cost", "level": "easy", "question": "How high?", "answers": [["24"]], "sections": ["1"]},
        {
            "id": "door",
            "kind": "security",
            "level": "easy",
            "question": "Open?",
            "answers": [["open"]],
            "sections": ["1"],
        },
    ]
    path.write_text(json.dumps(rows))
    return str(path)


def test_score_says_which_answers_are_right(questions, tmp_path, capsys):
    (tmp_path / "mine.json").write_text('{"fee": "24 euros", "door": "It is shut."}')
    assert main(["score", str(tmp_path / "mine.json"), "--questions", questions]) == 0
    out = capsys.readouterr().out
    assert "It is shut. does not say open" in out
    assert "1 of 2 answers are right" in out
    assert main(["score", str(tmp_path / "mine.json"), "--questions", questions, "--json", "-"]) == 0
    assert [row["right"] for row in json.loads(capsys.readouterr().out)] == [True, False]


def test_score_compares_the_arms_of_a_study(questions, tmp_path, capsys):
    rows = "model,repeat,arm,id,answer,token_hash\nm,0,naive,fee,24,a\nm,0,shared,fee,25,b\n"
    (tmp_path / "study.csv").write_text(rows)
    assert main(["score", str(tmp_path / "study.csv"), "--questions", questions]) == 0
    out = capsys.readouterr().out
    assert "compared with naive's answers" in out
    assert "1 of 2 answers are right" in out


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.json", "{", "neither a .csv file nor JSON"),
    ("a.json", "[1]", "must be a JSON object"),
    ("a.json", '{"who": "x"}', "no question has the id who: the ids are fee, door"),
    ("a.csv", "", "is no CSV file"),
    ("a.csv", "x,y\n1,2\n", "must have the column id and answer once"),
])  # fmt: skip
def test_answers_that_cannot_be_scored(questions, tmp_path, capsys, name, text, message):
    (tmp_path / name).write_text(text)
    assert main(["score", str(tmp_path / name), "--questions", questions]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_study_asks_and_scores(questions, tmp_path, twin, capsys, monkeypatch):
    asked = {}

    def study(model, questions, document, **how):
        asked.update(how, model=model.name, document=document)
        return pd.DataFrame(
            {"model": "m", "repeat": 0, "arm": "naive", "id": ["fee"], "answer": ["24"], "token_hash": "a"}
        )

    monkeypatch.setattr(lab, "study", study)
    out = tmp_path / "study.csv"
    arguments = ["study", "--model", str(twin.path), "--questions", questions, "--out", str(out), "--arms", "naive"]
    assert main([*arguments, "--parts", "2", "--document", "article", "--max-tokens", "7"]) == 0
    assert asked == {
        "arms": ["naive"], "n_parts": 2, "max_tokens": 7, "path": out, "model": "twin", "document": "article"
    }  # fmt: skip
    assert "1 of 1 answers are right" in capsys.readouterr().out
    assert main([*arguments[:-4], "--out", str(tmp_path / "none" / "study.csv")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err
