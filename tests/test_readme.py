"""The README: its numbers are the data's, its code and its commands run, its links lead to files."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
from ctypes import c_uint8

import llama_cpp as llama
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from swarmkv_lab import mini
from swarmkv_lab.files import REFERENCE
from swarmkv_studies.book.readme import README, numbers, rendered

PAGE = README.read_text(encoding="utf-8")
MECHANISM, PACKAGE = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


def test_the_page_is_its_template_filled_with_the_numbers_of_the_data():
    assert rendered() == PAGE, "make readme writes it"
    assert len(PAGE.encode()) <= 8_192


def test_factors_are_medians_of_the_ratios_within_a_round():
    runs = pd.DataFrame(json.loads((REFERENCE / "bench.json").read_text())["runs"])
    ends = runs.pivot_table("end_to_end_ms", "repeat", "strategy")
    for name in ("swarmkv", "shared"):
        assert f" s: {(ends.naive / ends[name]).median():.2f}x (" in numbers()[name].partition("|")[0]


def test_the_mechanism_gives_naives_logits(twin):
    """Restored and shared cells against a context that has read document and question itself."""
    document, question = [1, 2, 3, 4, 5], [6, 7]
    model = llama.llama_model_load_from_file(str(twin.path).encode(), llama.llama_model_default_params())
    first, second, naive = (mini.new_context(model, 64) for _ in range(3))

    def decode(ctx, tokens):
        array = (llama.llama_token * len(tokens))(*tokens)
        assert llama.llama_decode(ctx, llama.llama_batch_get_one(array, len(tokens))) == 0

    known = {"llama": llama, "c_uint8": c_uint8, "decode": decode, "first": first, "second": second}
    exec(MECHANISM, known | {"document": document, "question": question})
    restored = np.ctypeslib.as_array(llama.llama_get_logits(second), (twin.n_vocab,)).copy()
    shared = mini.decode(model, first, question, start=5, sequence=1)
    mini.decode(model, naive, document, start=0, sequence=0)
    expected = mini.decode(model, naive, question, start=5, sequence=0)
    np.testing.assert_array_equal(restored, expected)
    np.testing.assert_array_equal(shared, expected)
    for ctx in (first, second, naive):
        llama.llama_free(ctx)
    llama.llama_model_free(model)


@pytest.fixture
def my_document(speaker_path, tmp_path, monkeypatch):
    monkeypatch.setenv("SWARMKV_MODEL", str(speaker_path))
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.md").write_text("The seller is Ada Lind. The buyer is Bo Berg.")


def test_the_code_runs(my_document):
    names = {}
    exec(PACKAGE.replace("my.pdf", "my.md"), names)
    assert len(names["tokens"]) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(my_document, command, monkeypatch):
    program, *arguments = shlex.split(command.replace("my.pdf", "my.md"))
    if program == "make":
        if not shutil.which("make"):
            pytest.skip("no make here")
        done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    assert program == ".venv/bin/swarmkv-lab"
    monkeypatch.setattr("sys.argv", ["swarmkv-lab", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("swarmkv_studies", run_name="__main__")
    assert not ended.value.code
