"""Whatever a caller passes: the call ends well or in an error, and the process lives."""

import subprocess
import sys

import pytest
from conftest import ROOT, SOAK


@pytest.mark.parametrize("seed", range(10) if SOAK else [0])
def test_random_calls(seed):
    script, n_calls = ROOT / "tests" / "random_calls.py", 2000 if SOAK else 500
    command = [sys.executable, str(script), str(seed), str(n_calls)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=1800)
    last = done.stderr.splitlines()[-1:]
    assert done.returncode == 0, f"{done.stdout[-3000:]}\nthe last call: {last}"
