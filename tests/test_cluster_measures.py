"""What is measured of clusters, on a twin: that it is what it says; the numbers themselves are in data/."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import needs

from swarmkv_studies.cli import main
from swarmkv_studies.many_machines.bench import cluster_table

pytest.importorskip("distributed")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def prompts(rng):
    return {f"agent {i}": rng.integers(0, 256, 5, dtype=np.int32) for i in range(4)}


def test_ratios_are_of_one_repeat_each():
    times = {0: (100, 300), 1: (200, 400), 2: (100, 110)}
    rows = [
        {"crew": "1 x 1", "n_agents": 2, "repeat": repeat, "workers": workers, "end_to_end_ms": ms, "same": True}
        for repeat, pair in times.items()
        for workers, ms in enumerate(pair)
    ]
    (row,) = cluster_table(pd.DataFrame(rows)).to_dict("records")
    assert (row["one_process_s"], row["workers_s"], row["ratio"]) == (0.1, 0.3, 2)


@pytest.mark.real
def test_the_command(capsys, monkeypatch):
    monkeypatch.delenv("SWARMKV_CACHE")
    asked = ["cluster", "--workers", "1", "--depth", "64", "--agents", "2", "--max-tokens", "2", "--json", "-"]
    assert main(asked) == 0
    report = json.loads(capsys.readouterr().out)
    assert [agent["agent"] for agent in report["agents"]] == ["1 security", "2 licence"]
    assert report["workers"][0]["agents"] == 2
    assert report["errors"] == {}
    assert main(["cluster", "--workers", "0"]) == 2
    assert main(["cluster", "--scheduler", "tcp://127.0.0.1:9", "--depth", "64"]) == 2
    assert "the scheduler tcp://127.0.0.1:9 does not answer" in capsys.readouterr().err


@needs(os, "killpg")
@pytest.mark.real
def test_ctrl_c_is_one_line_though_the_workers_get_it_too(monkeypatch):
    monkeypatch.delenv("SWARMKV_CACHE")
    command = [
        sys.executable,
        "-m",
        "swarmkv_lab",
        "cluster",
        "--workers",
        "1",
        "--depth",
        "3000",
        "--max-tokens",
        "999",
    ]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **piped, start_new_session=True) as process:
        while not any(child.cpu_times().user > 2 for child in psutil.Process(process.pid).children(recursive=True)):
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err.strip()) == (130, "", "swarmkv-lab: interrupted")
