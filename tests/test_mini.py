"""mini.py: the idea on raw calls gives the package's bits; and threads, which spin for a bounded while."""

import os
import subprocess
import sys

import numpy as np
import pytest

import swarmkv_lab as lab
from swarmkv_lab import mini

QUESTION = "How many customers does the company have?"


@pytest.mark.real
def test_raw_calls_and_the_package_have_the_same_bits(real):
    document = lab.load_document("dossier")
    run = mini.fan_out(str(real.path), document, QUESTION, n_document=150, n_answer=3)
    tokens = real.tokenize(document)[:150]
    asked = real.tokenize(f"\n\nQuestion: {QUESTION}\nAnswer:", add_bos=False)
    package = lab.fan_out(real, tokens, {"one": asked}, "swarmkv", max_tokens=3)
    for how in ("restore", "share"):
        text, logits = run[how]
        assert np.array_equal(logits, package.branches[0].logits)
        assert text == package.answers["one"]


def _spin_in_a_new_process(before: str = "", **environment: str) -> tuple[str, str]:
    plain = {key: value for key, value in os.environ.items() if key not in lab._WAIT_VARIABLES}
    program = f"{before}\nimport swarmkv_lab, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    command = [sys.executable, "-W", "always", "-c", program]
    done = subprocess.run(command, env=plain | environment, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


def test_threads_spin_for_a_bounded_while_unless_the_user_has_said_how():
    assert _spin_in_a_new_process() == (lab._SPIN, "")
    assert _spin_in_a_new_process(GOMP_SPINCOUNT="77") == ("77", "")
    assert _spin_in_a_new_process(OMP_WAIT_POLICY="passive") == ("None", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libgomp is Linux's")
def test_it_says_so_when_the_library_was_there_before():
    for environment, warns in (({}, True), ({"GOMP_SPINCOUNT": "77"}, False)):
        _, said = _spin_in_a_new_process("import ctypes; ctypes.CDLL('libgomp.so.1')", **environment)
        assert ("RuntimeWarning" in said) == warns
