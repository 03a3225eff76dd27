"""swarmkv-lab: quick help, tables for people, JSON for programs, one line and exit 2 for anything bad."""

import json
import os
import re
import shlex
import subprocess
import sys
from unittest.mock import Mock

import click
import numpy as np
import pytest
from conftest import ROOT

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.cli.commands import ask, cache, cluster
from swarmkv_lab.sizing.catalogue import catalogue
from swarmkv_studies.cli import commands, main
from swarmkv_studies.peers.strategies import PEERS

SINGLE = {command.name: command for command in (ask, cluster, commands.bench, commands.reproduce, commands.size)}
SINGLE |= {f"cache {name}": command for name, command in cache.commands.items()}


def refused(capsys, *arguments):
    """The one line on stderr that a command ends with."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("swarmkv-lab: ")
    assert captured.err.count("\n") == 1
    return captured.err


# -- quick: what needs no model loads nothing for one

COUNTED = """
import sys
from swarmkv_studies.cli import main
status = main(sys.argv[1:])
heavy = [name for name in ("numpy", "pandas", "matplotlib", "llama_cpp", "tqdm") if name in sys.modules]
print(status, *heavy, file=sys.stderr)
"""


@pytest.mark.parametrize(("arguments", "status"), [
    ("", 0), ("--version", 0), ("--help", 0), ("bench --help", 0), ("ask --help", 0), ("cache show --help", 0),
    ("bnech", 2), ("--hepl", 2), ("bench --agnets 3", 2), ("cache lst", 2), ("ask", 2), ("size", 2),
])  # fmt: skip
def test_help_and_typos_load_nothing_heavy(arguments, status):
    done = subprocess.run([sys.executable, "-c", COUNTED, *arguments.split()], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1].split() == [str(status)]
    assert bool(done.stdout) == (status == 0)


# -- readable: on any terminal, and in a log


def words(text):
    return set(re.sub(r"[\[\]();,]", " ", text).split())


@pytest.mark.parametrize("name", SINGLE)
def test_help_says_every_default_shows_what_works_and_fits_a_narrow_terminal(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command = SINGLE[name]
    assert main([*name.split(), "--help"]) == 0
    wide = capsys.readouterr().out
    for option in command.params:
        if isinstance(option, click.Option) and not option.is_flag:
            assert option.default is not None or option.show_default, option.name
            assert option.help, option.name
    if command.epilog:
        example = shlex.split(command.epilog.removeprefix(f"example: swarmkv-lab {name}"))
        command.make_context(name, example)
    monkeypatch.setenv("COLUMNS", "40")
    assert main([*name.split(), "--help"]) == 0
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) <= 40
    assert words(narrow) == words(wide)  # none is cut


def test_help_lists_the_names_there_are(capsys):
    main(["bench", "--help"])
    assert {*lab.STRATEGIES, *PEERS} <= words(capsys.readouterr().out)
    main(["ask", "--help"])
    assert set(lab.STRATEGIES) <= words(capsys.readouterr().out)


# -- what is wrong, in one line


@pytest.mark.parametrize(("arguments", "says"), [
    ("benhc", "bench"), ("cache lst", "list"), ("bench --agnets 3", "--agents"),
    ("bench --strategies naive,shard", "mean shared"), ("ask x y --strategy poold", "mean pooled"),
    ("bench --peers lama_state", "mean llama_state"), ("cache save x --kv-type f16,q8", "mean q8_0"),
    ("reproduce --profile qick", "quick"), ("bench --model qwen2.5-05b", "mean qwen2.5-0.5b"),
    ("size qwen2.5-7bb", "mean qwen2.5-7b"), ("bench --document dosier", "mean dossier"),
    ("bench --agents 0", "--agents"), ("bench --agents two", "--agents"), ("bench --depth 0", "--depth"),
    ("bench --repeats 0.5", "--repeats"), ("bench --threads 0", "512"), ("bench --max-tokens -1", "--max-tokens"),
    ("bench --n-gpu-layers -2", "--n-gpu-layers"), ("cluster --workers 0", "1024"),
    ("size qwen2.5-7b --tokens 0", "--tokens"),
    ("bench --json", "--json"),
    ("size", "--list"), ("size qwen2.5-7b --list", "--list"), ("cache save", "FILE"), ("cache show", "FILE"),
    ("cache show a b", "b"), ("cache", "cache --help"), ("bench --model nowhere.gguf", "nowhere.gguf"),
    ("bench --document nowhere.md", "nowhere.md"), ("bench --depth 10 --model kimi-k2", "kimi-k2"),
    ("ask nowhere.kv.safetensors why?", "nowhere.kv.safetensors"), ("ask my.pdf why?", "--document my.pdf"),
    ("ask doc.kv.safetensors", "question"), ("ask --document dossier", "question"), ("cache show /proc", "/proc"),
    ("ask --document nowhere.pdf why?", "nowhere.pdf"), ("ask doc.kv.safetensors why? --depth 9", "--depth"),
])  # fmt: skip
def test_what_cannot_be_done_is_named_and_what_was_meant(arguments, says, capsys, tmp_path, monkeypatch, twin):
    if "--model" not in arguments:
        monkeypatch.setenv("SWARMKV_MODEL", str(twin.path))
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, *arguments.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["bench --json", "ask --document dossier why --json", "cache save"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_loaded(command, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(lab, "model_path", lambda *_: pytest.fail("a model was looked for"))
    for place in ("nowhere/there/x.csv", str(tmp_path)):
        assert place in refused(capsys, *command.split(), place)


def test_ctrl_c_is_one_line_and_exit_130(capsys, monkeypatch):
    monkeypatch.setattr(lab, "geometry", Mock(side_effect=KeyboardInterrupt))
    assert main(["size", "qwen2.5-7b"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_who_has_read_enough_of_it_gets_no_error():
    command = [sys.executable, "-m", "swarmkv_studies", "size", "--list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


# -- size and bench


def test_json_goes_to_a_file_beside_the_text_or_to_stdout_instead_of_it(tmp_path, capsys):
    assert main(["size", "qwen2.5-7b", "--json", str(tmp_path / "size.json")]) == 0
    assert "200,804,052" in capsys.readouterr().out
    assert main(["size", "qwen2.5-7b", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "size.json").read_text())
    assert main(["size", "--list", "--kv-type", "q8_0", "--json", "-"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == set(catalogue().index)
    assert rows["qwen2.5-7b"]["bytes_per_token"] == pytest.approx(57_344 * 34 / 64, rel=0.001)


@pytest.mark.real
def test_bench_measures_and_writes_json_and_nothing_else_without_a_terminal(tmp_path):
    arguments = "bench --depth 64 --agents 2 --strategies naive,shared --repeats 1 --max-tokens 3 --threads 1 --json"
    command = [sys.executable, "-m", "swarmkv_studies", *arguments.split(), str(tmp_path / "bench.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    assert not set("\r\x1b") & set(done.stdout + done.stderr)
    report = json.loads((tmp_path / "bench.json").read_text())
    assert {run["strategy"] for run in report["runs"]} == {"naive", "shared"}
    assert report["environment"]["n_threads"] == 1
    assert report["summary"]["shared"]["same_tokens"] is True


@pytest.mark.parametrize(("n_tokens", "depth"), [(64, 64), (4000, 3501)])
def test_bench_reads_3501_tokens_or_all_of_a_shorter_document(twin, monkeypatch, n_tokens, depth):
    bench = Mock(side_effect=lab.SwarmKVError("asked"))
    monkeypatch.setattr(studies, "bench", bench)
    monkeypatch.setattr(lab.Model, "read", lambda model, text: np.arange(n_tokens, dtype=np.int32))
    assert main(["bench", "--model", str(twin.path)]) == 2
    ((model, _), how) = bench.call_args
    assert (how["depth"], model.name, model.geometry) == (depth, "twin", twin.geometry)
