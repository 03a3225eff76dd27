"""The Makefile's help, and what make lab says to root. Nothing is installed or started."""

import os
import re
import shutil
import subprocess

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
TEXT = (ROOT / "Makefile").read_text()
TARGETS = re.search(r"^\.PHONY: (.*)$", TEXT, re.MULTILINE)[1].split()


def make(*arguments, folder=ROOT, **env):
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=folder, env=os.environ | env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bare_make_prints_the_help_with_every_target_and_a_sentence():
    said = make()
    assert said == make("help")
    told = dict(re.findall(r"^  make (\S+) +(\S.*)$", said, re.MULTILINE))
    assert list(told) == TARGETS
    assert all(re.match(r"[a-z]+ .{5,}", sentence) for sentence in told.values())
    assert set(re.findall(r"^([a-z-]+):", TEXT, re.MULTILINE)) == set(TARGETS)


def test_the_help_installs_nothing(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    make(folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["Makefile"]


@pytest.mark.parametrize("uid", [0, 1000])
def test_jupyter_is_allowed_to_run_as_root_for_root_alone_and_says_so(uid, tmp_path):
    """With an id that says who runs this; and at a log level that leaves the address the last line."""
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {uid}\n")
    (tmp_path / "id").chmod(0o755)
    recipe = make("--dry-run", "lab", "-o.venv/.ready", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert ("--allow-root" in recipe.splitlines()[-1]) == (uid == 0)
    said = 'echo "You are root, as in a container: Jupyter is started with --allow-root."'
    assert (said in recipe.splitlines()) == (uid == 0)
    assert "--log-level=ERROR" in recipe.splitlines()[-1]
