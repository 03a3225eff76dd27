"""What is measured and predicted of many machines, on a twin; test_project has the bounds that the rows keep."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
from conftest import needs

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_studies.cli import main
from swarmkv_studies.many_machines.bench import cluster_table
from swarmkv_studies.many_machines.shipping import break_even_table, ship_times

pytest.importorskip("distributed")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path / "cache"))


def test_ratios_are_of_one_repeat_each():
    times = {0: (100, 300), 1: (200, 400), 2: (100, 110)}
    rows = [
        {"crew": "1 x 1", "n_agents": 2, "repeat": repeat, "workers": workers, "end_to_end_ms": ms, "same": True}
        for repeat, pair in times.items()
        for workers, ms in enumerate(pair)
    ]
    (row,) = cluster_table(pd.DataFrame(rows)).to_dict("records")
    assert (row["one_process_s"], row["workers_s"], row["ratio"]) == (0.1, 0.3, 2)


def test_what_is_sent_is_what_would_be_computed(twin, document):
    rows = ship_times(twin, document, [1e5, 1e9], repeats=1, progress=False)
    assert rows.same_bits.all()
    assert (rows.load_ms > 1e3 * rows.bytes / rows.bandwidth).all()


def test_the_break_even_bandwidth_is_bytes_over_seconds():
    assert studies.break_even_bandwidth("qwen2.5-7b", 3501, 3501 / 4.339) == pytest.approx(200_804_052 / 4.339)
    whole, half = (studies.break_even_bandwidth("qwen2.5-7b", 3501, 807, kv_type) for kv_type in ("f16", "q8_0"))
    assert half / whole == pytest.approx(17 / 32, rel=1e-3)
    table = break_even_table({"smollm2-135m": 200, "qwen2.5-7b": 800}, [256, 4096])
    assert table.model.tolist() == ["smollm2-135m"] * 2 + ["qwen2.5-7b"] * 2
    assert table.bytes_per_s[0] == studies.break_even_bandwidth("smollm2-135m", 256, 200)


@pytest.mark.parametrize(("n_tokens", "speed"), [(0, 1.0), (10, 0.0), (10, math.nan)])
def test_bad_input_is_refused(n_tokens, speed):
    with pytest.raises(lab.SwarmKVError):
        studies.break_even_bandwidth("qwen2.5-7b", n_tokens, speed)


def test_the_map_counts_the_measured_points_that_it_agrees_with():
    lines = break_even_table({"qwen2.5-7b": 807.0, "smollm2-135m": 207.0}, [100, 10_000])
    points = pd.DataFrame(
        {"depth": [1000, 1000, 3000], "bytes_per_s": [1e6, 1e9, 1e7], "winner": ["recompute", "ship", "ship"]}
    )
    assert "2 of 3" in studies.ship_or_recompute(lines, points).get_label()


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
    assert "tcp://127.0.0.1:9" in capsys.readouterr().err


@needs(os, "killpg")
@pytest.mark.real
def test_ctrl_c_is_one_line_though_the_workers_get_it_too(monkeypatch):
    monkeypatch.delenv("SWARMKV_CACHE")
    asked = ["cluster", "--workers", "1", "--depth", "3000", "--max-tokens", "999"]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-m", "swarmkv_studies", *asked], **piped) as process:
        while not any(child.cpu_times().user > 2 for child in psutil.Process(process.pid).children(recursive=True)):
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err.strip()) == (130, "", "swarmkv-lab: interrupted")
