"""Importing: next to nothing is loaded before it is used, and what needs no llama.cpp works without it."""

import subprocess
import sys
import types

import pytest
from conftest import ROOT

import swarmkv_lab as lab


def python(program, *arguments):
    """A fresh process that has ended well."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done


def test_every_public_name_is_there_and_none_is_a_module_in_disguise():
    rooms = {path.name for path in (ROOT / "swarmkv_lab").iterdir() if path.is_dir()} | {"errors", "files"}
    for name in lab.__all__:
        assert isinstance(getattr(lab, name), types.ModuleType) == (name in rooms), name
    assert set(lab.__all__) <= set(dir(lab))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        lab.nothing_of_the_kind  # noqa: B018


WITHOUT_LLAMA_CPP = """
import sys
sys.modules["llama_cpp"] = None  # as where it is not installed
import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_studies import sizing_explorer

print(lab.geometry("llama-3.1-70b").snapshot_bytes(3501, kv_type="q8_0"))
print(lab.geometry(studies.twin(lab.geometry("smollm2-135m"))) == lab.geometry("smollm2-135m"))
print(len(studies.agents_by_budget(["qwen2.5-7b"], [8], 8192)))
reference = studies.measurements("reference")
print(studies.CostModel.fit(reference.grid).speedup([1024], [4], "shared").shape)
print(sizing_explorer().numbers["snapshot_bytes"] > 0)
try:
    lab.load_model
except ImportError as error:
    print(error)
"""


def test_sizing_analysis_figures_and_explorers_need_no_llama_cpp():
    lines = python(WITHOUT_LLAMA_CPP).stdout.splitlines()
    assert lines[0] == str(lab.geometry("llama-3.1-70b").snapshot_bytes(3501, kv_type="q8_0"))
    assert lines[1:5] == ["True", "2", "(1, 1)", "True"]
    assert "pip install llama-cpp-python" in lines[5]


LOUD_AND_SILENT = """
import os, sys, swarmkv_lab as lab
from llama_cpp import Llama
with lab.load_model(sys.argv[1]) as model, model.context(256) as ctx:
    ctx.decode([1, 2, 3])
    print("ours is silent", file=sys.stderr, flush=True)
    Llama(sys.argv[1], n_ctx=256, verbose=True).close()
"""


def test_llama_cpp_pythons_own_log_is_not_silenced(twin):
    before, _, after = python(LOUD_AND_SILENT, twin.path).stderr.partition("ours is silent\n")
    assert before == ""
    assert "llama_model_loader" in after
