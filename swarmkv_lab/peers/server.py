"""llama-server, as its users run it: agents at once or one after another, and slots saved and restored."""

import json
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.run import Branch, Run
from swarmkv_lab.llama import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.peers.build import program

_STARTS_WITHIN_S = 60


class LlamaServer:
    """A llama-server on loopback, on a free port, behind a key of its own, for as long as a ``with`` block lasts."""

    def __init__(self, model: Model, settings: ContextSettings, n_slots: int, *arguments: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.key = secrets.token_hex(16)
        self.folder = tempfile.TemporaryDirectory()
        self.log = Path(self.folder.name) / "log"
        key_type, value_type = settings.kv_pair
        options = {
            "model": model.path,
            "host": "127.0.0.1",
            "port": self.port,
            "api-key": self.key,
            "ctx-size": settings.n_ctx,
            "parallel": n_slots,
            "batch-size": settings.n_batch,
            "threads": settings.threads,
            "threads-batch": settings.threads_batch,
            "cache-type-k": key_type,
            "cache-type-v": value_type,
            "n-gpu-layers": 99 if model.on_gpu else 0,
            "flash-attn": "on" if settings.uses_flash_attn(model.on_gpu) else "off",
            "slot-save-path": self.folder.name,
        }
        command = [program("llama-server"), *(text for name, value in options.items() for text in (f"--{name}", value))]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*map(str, command), "--no-ui", *arguments], stdout=log, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> "LlamaServer":
        until = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < until and self.process.poll() is None:
            try:
                self.ask("GET", "/health")
            except (OSError, SwarmKVError):
                time.sleep(0.05)
            else:
                return self
        said = self.log.read_text(errors="replace")
        self.__exit__()
        raise SwarmKVError(f"llama-server did not start: {said[-800:]}")

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()

    def ask(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """One request with a JSON answer."""
        with self._request(method, path, body) as answer:
            return json.loads(answer.read())

    def complete(
        self, prompt: Sequence[int], n: int, on_first: Callable[[], None] = lambda: None, **body: Any
    ) -> list[int]:
        """Greedy tokens after a prompt of token ids; on_first is called when the first one has come."""
        body |= {"prompt": list(prompt), "n_predict": n, "temperature": 0.0, "stream": True, "return_tokens": True}
        tokens: list[int] = []
        with self._request("POST", "/completion", body) as answer:
            for line in answer:
                if line.startswith(b"data: ") and (new := json.loads(line[6:]).get("tokens")):
                    if not tokens:
                        on_first()
                    tokens += new
        return tokens

    @contextmanager
    def _request(self, method: str, path: str, body: dict[str, Any]) -> Iterator[Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=3600)  # a long queue
        try:
            headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
            connection.request(method, path, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise SwarmKVError(f"llama-server answered {path} with {answer.status}: {answer.read()[:300]!r}")
            yield answer
        finally:
            connection.close()


def server_cold(run: Run) -> None:
    """All agents at once, each with its whole prompt, a slot each with a cache of its own; nothing was there before."""
    with _serving(run, len(run.branches), "--no-kv-unified") as server:
        _at_once(run, server)


def server_unified(run: Run) -> None:
    """The same with the slots in one unified cache: attention then also looks at, and masks, the others' tokens."""
    with _serving(run, len(run.branches), "--kv-unified") as server:
        _at_once(run, server)


def server_primed(run: Run) -> None:
    """The document first, as a request of its own; then all agents at once."""
    with _serving(run, len(run.branches), "--kv-unified") as server:
        with run.phase(None, "prefill"):
            server.complete(run.tokens.tolist(), 1)
        _at_once(run, server)


def server_warm(run: Run) -> None:
    """One slot, the agents one after the other: it keeps the prefix that a prompt has in common with the one before."""
    with _serving(run, 1) as server:
        with run.phase(None, "prefill"):
            server.complete(run.tokens.tolist(), 1)
        for agent in run.branches:
            _one(run, server, agent)


def server_slots(run: Run) -> None:
    """The document's slot is saved to a file, and restored for each agent."""
    with _serving(run, 1) as server:
        with run.phase(None, "prefill"):
            server.complete(run.tokens.tolist(), 1)
        with run.phase(None, "capture"):
            saved = server.ask("POST", "/slots/0?action=save", filename="document")
        for agent in run.branches:
            with run.phase(agent, "restore", saved["n_written"]):
                server.ask("POST", "/slots/0?action=restore", filename="document")
            _one(run, server, agent)


SERVER_PEERS: Mapping[str, Callable[[Run], None]] = {
    f.__name__: f for f in (server_cold, server_unified, server_primed, server_warm, server_slots)
}


@contextmanager
def _serving(run: Run, n_slots: int, *arguments: str) -> Iterator[LlamaServer]:
    """A server that has done something, started while the clock stands still; its memory counts."""
    most = max(len(agent.prompt) + agent.max_tokens for agent in run.branches)
    settings = ContextSettings(**run.settings | {"n_ctx": n_slots * (len(run.tokens) + most + 1)})
    n_bytes = settings.cache_bytes(run.model.geometry, settings.uses_flash_attn(run.model.on_gpu))
    with run.off_the_clock():
        server = LlamaServer(run.model, settings, n_slots, *arguments).__enter__()
    try:
        with run.off_the_clock():
            server.complete(run.branches[0].prompt.tolist(), 2, cache_prompt=False)
        with run.holding(n_bytes):
            yield server
    finally:
        server.__exit__()


def _one(run: Run, server: LlamaServer, agent: Branch) -> None:
    first: list[float] = []
    start = run.now()
    _keep(
        run,
        agent,
        server.complete(run.whole_prompt(agent), agent.max_tokens, lambda: first.append(run.now()), id_slot=0),
    )
    run.add(agent, "branch", start, first[0])
    run.add(agent, "generate", first[0], run.now())


def _at_once(run: Run, server: LlamaServer) -> None:
    start = run.now()

    def work(agent: Branch) -> tuple[float, float]:
        first: list[float] = []
        _keep(run, agent, server.complete(run.whole_prompt(agent), agent.max_tokens, lambda: first.append(run.now())))
        return first[0], run.now()

    with ThreadPoolExecutor(len(run.branches)) as threads:
        ends = list(threads.map(work, run.branches))
    for agent, (first, end) in zip(run.branches, ends, strict=True):
        run.add(agent, "branch", start, first)
        run.add(agent, "generate", first, end)


def _keep(run: Run, agent: Branch, tokens: Sequence[int]) -> None:
    agent.tokens += [token for token in tokens if not run.model.is_eog(token)]
