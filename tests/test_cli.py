"""swarmkv-lab: tables for people, JSON for programs, one line and exit 2 for anything bad."""

import json

import pytest

from swarmkv_lab.cli import main


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
        "model nowhere.gguf",
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


def test_model_prints_the_path(twin, capsys):
    assert main(["model", str(twin.path)]) == 0
    assert capsys.readouterr().out == f"{twin.path}\n"
