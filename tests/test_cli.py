"""swarmkv-lab: tables for people, JSON for programs, one line and exit 2 for anything bad."""

import argparse
import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import swarmkv_lab as lab
from swarmkv_lab import files
from swarmkv_lab.sizing.catalogue import catalogue
from swarmkv_studies.cli import main
from swarmkv_studies.cli.commands import parser
from swarmkv_studies.cli.options import RUNS_MODEL
from swarmkv_studies.peers import tuning


@pytest.mark.real
def test_bench_prints_a_table_and_writes_json(tmp_path, capsys):
    out = tmp_path / "bench.json"
    arguments = "bench --depth 64 --agents 2 --strategies naive,pooled,shared --repeats 2 --max-tokens 3 --threads 2"
    assert main([*arguments.split(), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "times as early" in printed
    report = json.loads(out.read_text())
    assert len(report["runs"]) == 6
    assert len(report["runs"][0]["agents"]) == 2
    assert report["environment"]["n_threads"] == 2
    for key in ("last_ttft_ms", "end_to_end_speedup", "end_to_end_bound", "max_abs_logit_diff"):
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


# -- help


def commands():
    """Each command's parser, by its name."""
    (action,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return action.choices


COMMANDS = list(commands())


def test_without_arguments_the_whole_help_is_printed(capsys):
    assert main([]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("usage: swarmkv-lab")
    for name in COMMANDS:
        assert f"\n    {name} " in captured.out or f"\n    {name}\n" in captured.out


def test_the_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"swarmkv-lab {lab.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_every_default_and_an_example_that_works(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = commands()[name]
    for action in one._actions:
        assert action.help, action
        if action.option_strings and not action.required and action.dest != "help":
            assert "default: " in one._get_formatter()._expand_help(action), action.option_strings
            assert "default: None" not in one._get_formatter()._expand_help(action), action.option_strings
    example = one.format_help().split("example:\n  swarmkv-lab ")[1]
    assert example.count("\n") == 1
    assert shlex.split(example)[0] == name
    parser().parse_args(shlex.split(example))


def test_every_command_that_runs_a_model_takes_the_same_options():
    """But those whose experiment is fixed: reproduce and gpu."""
    for name in ("prefill", "ask", "study", "bench", "pipeline", "cluster"):
        assert set(RUNS_MODEL) <= set(commands()[name]._option_string_actions), name
    assert {"--threads", "--n-gpu-layers"} <= set(commands()["size"]._option_string_actions)  # its model has no option


def test_an_option_means_the_same_wherever_it_is():
    found = {}
    for name, one in commands().items():
        for option, action in one._option_string_actions.items():
            if option in ("--json", "--model", "--n-gpu-layers", "--kv-type"):
                found.setdefault(option, {})[name] = (action.help, action.default, action.metavar, action.nargs)
    assert {option: len(set(by.values())) for option, by in found.items()} == dict.fromkeys(found, 1)


def test_json_goes_to_a_file_beside_the_text_or_to_stdout_instead_of_it(tmp_path, capsys):
    assert main(["size", "qwen2.5-7b", "--json", str(tmp_path / "size.json")]) == 0
    assert "predicted" in capsys.readouterr().out
    assert main(["size", "qwen2.5-7b", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "size.json").read_text())


def test_size_lists_the_catalogue(capsys):
    assert main(["size", "--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in catalogue().index)
    assert main(["size", "--list", "--kv-type", "q8_0", "--json", "-"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == set(catalogue().index)
    assert rows["qwen2.5-7b"]["bytes_per_token"] == pytest.approx(57_344 * 34 / 64, rel=0.001)


# -- what is wrong, in one line


def refused(capsys, *arguments):
    """The one line that a command ends with."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("swarmkv-lab: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(("arguments", "says"), [
    ("benhc", "did you mean bench?"),
    ("bench --agnets 3", "'--agnets' is no argument of swarmkv-lab bench; did you mean --agents?"),
    ("bench --strategies naive,shard", "--strategies: 'shard' is not one of naive, swarmkv, pooled, shared, batched; "
     "did you mean shared?"),
    ("ask x y --strategy poold", "--strategy: 'poold' is not one of"),
    ("bench --peers lama_state", "did you mean llama_state"),
    ("bench --weights q8_O", "did you mean q8_0?"),
    ("prefill --out x --kv-type f16,q8", "did you mean q8_0?"),
    ("study --out x.csv --arms naiv", "did you mean naive?"),
    ("reproduce --profile qick", "did you mean quick?"),
    ("cache lst", "did you mean list?"),
    ("gpu qwen2.5-7", "did you mean qwen2.5-7b"),
    ("bench --model qwen2.5-05b", "did you mean qwen2.5-0.5b"),
    ("model Smollm-135M", "did you mean smollm2-135m"),
    ("size qwen2.5-7bb", "nor in the catalogue; did you mean qwen2.5-7b"),
    ("bench --document dosier", "did you mean dossier?"),
])  # fmt: skip
def test_what_is_mistyped_is_guessed(arguments, says, capsys):
    assert says in refused(capsys, *arguments.split())


@pytest.mark.parametrize(("arguments", "says"), [
    ("bench --agents 0", "--agents: 0 is not a whole number from 1 to 10,000 (see swarmkv-lab bench --help)"),
    ("bench --agents -1", "--agents: -1 is not"),
    ("bench --agents two", "--agents: two is not"),
    ("bench --depth 0", "--depth: 0"),
    ("bench --repeats 0.5", "--repeats: 0.5"),
    ("bench --threads 0", "--threads: 0 is not a whole number from 1 to 512"),
    ("bench --max-tokens -1", "--max-tokens: -1"),
    ("bench --n-gpu-layers -2", "--n-gpu-layers: -2"),
    ("cluster --workers 0", "--workers: 0"),
    ("study --out x.csv --parts 0", "--parts: 0"),
    ("size qwen2.5-7b --tokens 0", "--tokens: 0"),
    ("bench --weights q8_0,q4_0", "--weights: "),
    ("bench --json", "--json: expected one argument"),
    ("size", "NAME_OR_PATH --list is required"),
    ("ask", "there is no question"),
    ("prefill", "--out"), ("study", "--out"), ("inspect", "FILE"), ("score", "FILE"), ("pipeline", "FILE"),
    ("cache", "ACTION"), ("inspect a b", "'b' is no argument of swarmkv-lab inspect"),
])  # fmt: skip
def test_an_error_names_the_option(arguments, says, capsys):
    assert says in refused(capsys, *arguments.split())


@pytest.mark.parametrize("command", ["bench --json", "prefill --out", "study --out", "size qwen2.5-7b --json"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(command, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(lab, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    option = command.split()[-1]
    for place in ("nowhere/there/x.csv", str(tmp_path)):
        assert f"{option}: " in (said := refused(capsys, *command.split(), place))
        assert place in said


@pytest.mark.parametrize("command", [
    ["model"], ["size"], ["inspect"], ["score"], ["pipeline"], ["bench", "--model"], ["bench", "--document"],
    ["score", "--questions", "X"], ["ask", "X", "why?"],
])  # fmt: skip
@pytest.mark.parametrize("path", ["nowhere/../there.bin", "./broken.bin"])
def test_a_path_is_shown_as_it_was_given(command, path, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.bin").write_bytes(b"\0 neither this nor that")
    words = [path if word == "X" else word for word in command]
    assert path in refused(capsys, *words, *([path] if "X" not in command else ["x.csv"] * (command[0] == "score")))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "file").chmod(0)
    for command in (["model"], ["inspect"], ["score"], ["pipeline"], ["bench", "--document"]):
        assert "Permission denied" in refused(capsys, *command, tmp_path / "file")


def test_ctrl_c_is_one_line_also_while_the_packages_load(capsys, monkeypatch):
    def interrupted(*_args):
        raise KeyboardInterrupt

    for place in ("swarmkv_lab.geometry", "swarmkv_studies.cli.commands.parser"):
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupted)
            assert main(["size", "qwen2.5-7b"]) == 130
            assert capsys.readouterr().err == "swarmkv-lab: interrupted\n"
    program = "import swarmkv_lab.cli, sys; sys.exit('pandas' in sys.modules or 'llama_cpp' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)  # they load where Ctrl-C is heard


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
    monkeypatch.setattr(tuning, "time_work", lambda ctx, tokens: np.full(3, fast[ctx.model.name]))
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
    assert main([*arguments, "--parts", "2", "--document", "article", "--max-tokens", "7", "--threads", "1"]) == 0
    assert asked == {
        "arms": ["naive"], "n_parts": 2, "max_tokens": 7, "path": str(out), "model": "twin", "document": "article",
        "n_threads": 1,
    }  # fmt: skip
    assert "1 of 1 answers are right" in capsys.readouterr().out
    assert main([*arguments[:-4], "--out", str(tmp_path / "none" / "study.csv")]) == 2
    assert "does not exist" in capsys.readouterr().err
