"""Peers: each answers as naive does, in the strategies' own words, and is stopped at the end."""

import signal
import sys
from unittest.mock import Mock

import httpx
import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import QUESTIONS

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.fanout.strategies import STRATEGIES
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_studies.common.bench import bench
from swarmkv_studies.common.speedup import as_words
from swarmkv_studies.common.summary import peers_table
from swarmkv_studies.peers import build, server, strategies
from swarmkv_studies.peers.bench import compare_peers, without_beginning
from swarmkv_studies.peers.llama_cpp_python import LLAMA_PEERS
from swarmkv_studies.peers.server import SERVER_PEERS
from swarmkv_studies.peers.verdict import verdict


def comparison(**prefill_ms):
    """Runs of two strategies and three peers at one depth: times as given, else the same for all of a kind."""
    rows = [
        ("naive", False, 2000, 5000), ("shared", False, 50, 1300), ("batched", True, 300, 1200),
        ("warm", False, 50, 1300), ("torch", False, 60, 2000), ("slots", True, 3000, 4800),
    ]  # fmt: skip
    columns = ["strategy", "packed", "last_turn_ttft_ms", "end_to_end_ms"]
    frame = pd.DataFrame(rows, columns=columns).assign(depth=100, n_agents=8, branch_ms=40.0, prefill_ms=1000.0)
    return frame.assign(prefill_ms=[prefill_ms.get(name, 1000.0) for name in frame.strategy], repeat=0)


def test_the_verdict_is_against_the_best_peer_and_a_small_difference_is_a_tie():
    ours = list(STRATEGIES)
    table = verdict(comparison(torch=400.0, slots=0.0), ours)
    assert table.peer.to_dict() == {"in turns": "warm", "all at once": "warm", "prefill": "torch"}
    assert [as_words(row) for _, row in table.iterrows()] == ["a tie", "1.08x ahead", "2.5x behind"]
    assert table.ours["in turns"] == "shared"  # batched has no turns
    slower = comparison().assign(repeat=1)
    slower["end_to_end_ms"] += 500 * (slower.strategy == "batched")
    noisy = pd.concat([comparison(), slower])
    assert as_words(verdict(noisy, ours).loc["all at once"]) == "a tie"  # the rounds disagree
    figure = studies.verdict(comparison(torch=400.0), "a caption")
    assert figure.get_label() == "The lab against the best: in turns a tie, all at once 1.08x ahead"
    with pytest.raises(lab.SwarmKVError):
        verdict(noisy[noisy.strategy.isin(ours)], ours)


@pytest.mark.peers
def test_every_peer_answers_as_naive_does(speaker):
    tokens = speaker.tokenize(lab.load_document("dossier"))[:100]
    with strategies.opened(list(LLAMA_PEERS), speaker, 512) as opened:
        _, runs = bench(
            speaker, tokens, depth=100, n_agents=3, strategies=["naive", "shared", *opened.values()], repeats=1,
            max_tokens=8, agents=QUESTIONS,
        )  # fmt: skip
    assert [run.strategy for run in runs] == ["naive", "shared", *LLAMA_PEERS]
    for run in runs[1:]:
        assert run.compare(runs[0]).same_tokens.all(), run.strategy
        assert run.agents.ttft_ms.notna().all()
        assert run.metrics["kv_bytes"] > 0
    assert runs[-1].metrics["copied_bytes"] > 0  # llama_state's
    prefix = next(run for run in runs if run.strategy == "llama_prefix")  # ran twice, the first time as a warm-up
    assert prefix.timeline.phase.tolist().count("prefill") == 1  # the document is not left over from the last time


@pytest.mark.peers
@pytest.mark.real
def test_a_comparison_decodes_what_all_prompts_begin_with_once(real, dossier):
    frame = compare_peers(
        real, dossier, depth=120, n_agents=[1, 3], peers=["llama_prefix"], strategies=["naive", "shared", "batched"],
        agents=QUESTIONS, max_tokens=3,
    )  # fmt: skip
    assert set(frame.depth) == {120}
    table = peers_table(frame)
    assert list(table.index) == ["naive", "shared", "batched", "llama_prefix"]
    from_turn = table["last TTFT from its turn, ms"]
    assert from_turn.loc["batched"].isna().all()  # its agents have no turns
    assert from_turn.drop(index="batched").notna().all(axis=None)
    whole, first = table["end to end, ms"][3], table["last TTFT from the call, ms"][3]
    assert (first < whole).all()
    assert table["3 agents"]["as naive"].drop("batched").eq(1).all()


def test_peers_whose_programs_are_not_here_are_left_out(twin, monkeypatch, capsys):
    monkeypatch.setattr(strategies, "program", Mock(side_effect=lab.SwarmKVError("it is not built")))
    found = strategies.available()
    assert set(LLAMA_PEERS) <= set(found)
    assert not [name for name in found if name.startswith("server")]
    assert "it is not built" in capsys.readouterr().err
    assert not set(strategies.PEERS) & set(STRATEGIES)
    for name in ("server_warm", "vllm"):
        with pytest.raises(lab.SwarmKVError), strategies.opened([name], twin, 512):
            pass


@pytest.mark.peers
@pytest.mark.real
def test_transformers_answers_like_naive(real, dossier):
    torch = pytest.importorskip("torch", reason="pip install 'swarmkv-lab[peers]'")
    pytest.importorskip("transformers")
    threads = torch.get_num_threads()
    naive = lab.fan_out(real, dossier, QUESTIONS, "naive", max_tokens=8)
    with strategies.opened(["transformers"], real, 1024, n_threads=1) as opened:
        assert torch.get_num_threads() == 1
        run = lab.fan_out(real, dossier, QUESTIONS, opened["transformers"], max_tokens=8)
    assert torch.get_num_threads() == threads
    compared = run.compare(naive)
    assert compared.kl.max() < 0.1  # dequantized weights, other kernels
    for agent, theirs in zip(run.branches, naive.branches, strict=True):
        assert agent.tokens[0] == theirs.tokens[0]
    assert run.timeline.phase.tolist().count("prefill") == 1
    assert run.metrics["copied_bytes"] > 0


def test_what_prompts_begin_with_alike_is_never_all_of_one():
    prompts = {"a": np.array([1, 2, 3, 4]), "b": np.array([1, 2, 3]), "c": np.array([1, 2, 5])}
    alike, branches = without_beginning(prompts)
    assert alike.tolist() == [1, 2]
    assert {name: rest.tolist() for name, rest in branches.items()} == {"a": [3, 4], "b": [3], "c": [5]}
    alike, branches = without_beginning({"a": np.array([1, 2]), "b": np.array([1, 2])})
    assert (alike.tolist(), branches["a"].tolist()) == ([1], [2])


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_an_interrupt_while_a_server_starts_leaves_none(twin, monkeypatch, tmp_path):
    """Its key is nowhere on its command line, where any user of the machine could read it."""
    stand_in = tmp_path / "llama-server"
    stand_in.write_text("#!/bin/sh\nexec sleep 600\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(server, "program", lambda name: stand_in)
    monkeypatch.setattr(httpx.Client, "get", Mock(side_effect=KeyboardInterrupt))
    starting = server.LlamaServer(twin, ContextSettings(n_ctx=512), 1)
    with pytest.raises(KeyboardInterrupt):
        starting.__enter__()
    assert starting.process.returncode == -signal.SIGKILL
    assert starting.key not in " ".join(starting.command)


# -- llama-server, where make peers has built it


@pytest.fixture
def llama_server():
    try:
        build.program("llama-server")
    except lab.SwarmKVError as error:
        pytest.skip(str(error))


def servers():
    return [child for child in psutil.Process().children() if child.name() == "llama-server"]


@pytest.mark.peers
@pytest.mark.real
@pytest.mark.usefixtures("llama_server")
@pytest.mark.parametrize("name", SERVER_PEERS)
def test_it_answers_as_naive_does(real, dossier, name):
    naive = lab.fan_out(real, dossier, QUESTIONS, "naive", max_tokens=8)
    with strategies.opened([name], real, 1024) as opened:
        run = lab.fan_out(real, dossier, QUESTIONS, opened[name], max_tokens=8)
    compared = run.compare(naive)
    assert compared.same_tokens.all()
    assert run.agents.ttft_ms.notna().all()
    assert servers() == []


@pytest.mark.peers
@pytest.mark.real
@pytest.mark.usefixtures("llama_server")
def test_a_server_that_fails_says_why_and_leaves_no_process(real, dossier, monkeypatch):
    with pytest.raises(lab.SwarmKVError):
        server.LlamaServer(real, ContextSettings(512), 1, "--no-such-option").__enter__()
    with server.LlamaServer(real, ContextSettings(512), 1) as running, pytest.raises(lab.SwarmKVError, match="400"):
        running.complete([10**6], 1)
    monkeypatch.setattr(server.LlamaServer, "complete", Mock(side_effect=KeyboardInterrupt))
    with strategies.opened(["server_warm"], real, 1024) as opened, pytest.raises(KeyboardInterrupt):
        lab.fan_out(real, dossier, QUESTIONS, opened["server_warm"], max_tokens=8)
    assert servers() == []
