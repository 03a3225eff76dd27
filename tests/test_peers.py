"""Peers: each answers as naive does, in the strategies' own words, and is stopped at the end."""

import json

import pytest
from conftest import QUESTIONS

import swarmkv_lab as lab
from swarmkv_lab import peers
from swarmkv_lab.bench import bench
from swarmkv_lab.cli import main
from swarmkv_lab.peers.llama_cpp_python import LLAMA_PEERS
from swarmkv_lab.strategies import STRATEGIES

pytestmark = pytest.mark.real


def test_every_peer_answers_as_naive_does(real, dossier):
    with peers.opened(list(LLAMA_PEERS), real, 1024) as opened:
        report, runs = bench(
            real, dossier, depth=400, n_agents=3, strategies=["naive", "shared", *opened.values()], repeats=1,
            max_tokens=8, agents=QUESTIONS,
        )  # fmt: skip
    assert [run.strategy for run in runs] == ["naive", "shared", *LLAMA_PEERS]
    for run in runs[1:]:
        assert run.compare(runs[0]).same_tokens.all(), run.strategy
        assert (run.agents.ttft_ms > 0).all()
        assert run.metrics["kv_bytes"] > 0
    assert report["summary"]["llama_state"]["ttft_speedup"] > 1
    assert report["summary"]["llama_state"]["copied_bytes"] > 0


def test_a_peer_twice_begins_anew(real, dossier):
    with peers.opened(["llama_prefix"], real, 1024) as opened:
        runs = [lab.fan_out(real, dossier, QUESTIONS[:2], opened["llama_prefix"], max_tokens=4) for _ in range(2)]
    for run in runs:
        assert run.timeline.phase.tolist().count("prefill") == 1  # the document is not left over from the last time
    assert runs[0].answers == runs[1].answers


def test_a_peer_that_is_unknown(real):
    with pytest.raises(lab.SwarmKVError, match=r"vllm: the peers are llama_state, "), peers.opened(["vllm"], real, 512):
        pass


def test_strategies_and_peers_have_different_names():
    assert not set(peers.PEERS) & set(STRATEGIES)


def test_bench_takes_peers_too(tmp_path):
    out = tmp_path / "bench.json"
    asked = ["--depth", "200", "--repeats", "1", "--max-tokens", "3", "--strategies", "naive,shared"]
    assert main(["bench", *asked, "--peers", "llama_state", "--json", str(out)]) == 0
    assert list(json.loads(out.read_text())["summary"]) == ["naive", "shared", "llama_state"]
