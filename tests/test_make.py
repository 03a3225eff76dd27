"""The Makefile's help, and what make lab says to root. Nothing is installed or started."""

import os
import shutil
import subprocess

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
TEXT = (ROOT / "Makefile").read_text()


def make(*arguments, folder=ROOT, **env):
    command = ["make", "--no-print-directory", *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("uid", [0, 1000])
def test_jupyter_is_allowed_to_run_as_root_for_root_alone(uid, tmp_path):
    """With an id that says who runs this; and at a log level that leaves the address the last line."""
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {uid}\n")
    (tmp_path / "id").chmod(0o755)
    recipe = make("--dry-run", "lab", "-o.venv/.ready", PATH=f"{tmp_path}:{os.environ['PATH']}").splitlines()
    assert ("--allow-root" in recipe[-1]) == (uid == 0)
    assert any("--allow-root" in line for line in recipe[:-1]) == (uid == 0)
    assert "--log-level=ERROR" in recipe[-1]
