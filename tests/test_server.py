"""llama-server as a peer (make peers builds it): it answers as naive does, and no process is left."""

from unittest.mock import Mock

import psutil
import pytest
from conftest import QUESTIONS

import swarmkv_lab as lab
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_studies.peers import build, strategies
from swarmkv_studies.peers.server import SERVER_PEERS, LlamaServer

try:
    build.program("llama-server")
except SwarmKVError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = [pytest.mark.real, pytest.mark.peers]


def servers():
    return [child for child in psutil.Process().children() if child.name() == "llama-server"]


@pytest.mark.parametrize("name", SERVER_PEERS)
def test_it_answers_as_naive_does(real, dossier, name):
    naive = lab.fan_out(real, dossier, QUESTIONS, "naive", max_tokens=8)
    with strategies.opened([name], real, 1024) as opened:
        run = lab.fan_out(real, dossier, QUESTIONS, opened[name], max_tokens=8)
    compared = run.compare(naive)
    assert compared.same_tokens.sum() >= (3 if name in ("server_warm", "server_slots") else 1)  # packed: other shapes
    assert run.agents.ttft_ms.notna().all()
    assert servers() == []


def test_a_server_that_fails_says_why_and_leaves_no_process(real, dossier, monkeypatch):
    with pytest.raises(SwarmKVError):
        LlamaServer(real, ContextSettings(512), 1, "--no-such-option").__enter__()
    with LlamaServer(real, ContextSettings(512), 1) as server, pytest.raises(SwarmKVError, match="404"):
        server.ask("GET", "/nowhere")
    monkeypatch.setattr(LlamaServer, "complete", Mock(side_effect=KeyboardInterrupt))
    with strategies.opened(["server_warm"], real, 1024) as opened, pytest.raises(KeyboardInterrupt):
        lab.fan_out(real, dossier, QUESTIONS, opened["server_warm"], max_tokens=8)
    assert servers() == []
