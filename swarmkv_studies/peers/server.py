"""llama-server as its users run it: all agents at once, each in a slot, or one after another in a warm one."""

import json
import os
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

import swarmkv_lab as lab
from swarmkv_lab.fanout.recorder import Span
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.fanout.strategies import Strategy
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_studies.peers.build import program

_STARTS_WITHIN_S = 60


class LlamaServer:
    """A llama-server on a free loopback port, with its own API key; it runs during a ``with`` block.

    Entering the block raises SwarmKVError if the server does not start.
    """

    def __init__(self, model: lab.Model, settings: ContextSettings, n_slots: int, *arguments: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.key = secrets.token_hex(16)
        self.folder = tempfile.TemporaryDirectory()
        self.process: subprocess.Popen[bytes] | None = None
        key_type, value_type = settings.kv_pair
        options = {
            "model": model.path,
            "host": "127.0.0.1",
            "port": self.port,
            "ctx-size": settings.cells,
            "parallel": n_slots,
            "batch-size": settings.n_batch,
            "threads": settings.threads,
            "threads-batch": settings.threads_batch,
            "cache-type-k": key_type,
            "cache-type-v": value_type,
            "n-gpu-layers": 99 if model.on_gpu else 0,
            "flash-attn": "on" if settings.uses_flash_attn(model.on_gpu) else "off",
        }
        flags = (text for name, value in options.items() for text in (f"--{name}", value))
        self.command = [*map(str, (program("llama-server"), *flags)), "--no-ui", *arguments]
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=httpx.Timeout(3600),  # seconds; a request may wait for many others
            # A new connection for each request: the server may close an idle one just when the next request is sent.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,  # no proxy for loopback
        )

    def __enter__(self) -> "LlamaServer":
        log = Path(self.folder.name) / "log"
        until = time.monotonic() + _STARTS_WITHIN_S
        try:
            with log.open("w") as file:
                self.process = subprocess.Popen(
                    self.command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"LLAMA_API_KEY": self.key}
                )
            while time.monotonic() < until and self.process.poll() is None:
                with suppress(httpx.HTTPError):
                    if self.client.get("/health").is_success:
                        return self
                time.sleep(0.05)
            raise lab.SwarmKVError(f"llama-server did not start: {log.read_text(errors='replace')[-800:]}")
        except BaseException:  # also Ctrl-C
            self.__exit__()
            raise

    def __exit__(self, *exc: object) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
        self.client.close()
        self.folder.cleanup()

    def complete(
        self, prompt: Sequence[int], n: int, on_first: Callable[[], None] = lambda: None, **body: Any
    ) -> list[int]:
        """Greedy tokens after a prompt of token ids; on_first is called when the first token has arrived.

        Raises SwarmKVError if the server refuses it, or does not answer with a token.
        """
        body |= {"prompt": list(prompt), "n_predict": n, "temperature": 0.0, "stream": True, "return_tokens": True}
        tokens: list[int] = []
        try:
            with self.client.stream("POST", "/completion", json=body) as answer:
                if not answer.is_success:
                    raise lab.SwarmKVError(f"llama-server answered {answer.status_code}: {answer.read()[:300]!r}")
                for line in answer.iter_lines():
                    if line.startswith("data: ") and (new := json.loads(line[6:]).get("tokens")):
                        if not tokens:
                            on_first()
                        tokens += new
        except httpx.HTTPError as error:
            raise lab.SwarmKVError(f"llama-server did not answer: {error}") from error
        if not tokens:
            raise lab.SwarmKVError("llama-server answered without a token")
        return tokens


def server_cold(run: Run) -> None:
    """All agents at once, each with its whole prompt in a slot with its own, empty cache."""
    with _serving(run, len(run.branches), "--no-kv-unified") as server:
        start = run.now()
        with ThreadPoolExecutor(len(run.branches)) as threads:
            times = list(threads.map(lambda agent: _asked(run, server, agent), run.branches))
        for agent, (first, end) in zip(run.branches, times, strict=True):
            _record(run, agent, start, first, end)


def server_warm(run: Run) -> None:
    """One slot, the agents one after another: it reuses the prefix that a prompt shares with the previous one."""
    with _serving(run, 1) as server:
        with run.phase(None, "prefill"):
            server.complete(run.tokens.tolist(), 1)
        for agent in run.branches:
            start = run.now()
            _record(run, agent, start, *_asked(run, server, agent, id_slot=0))


SERVER_PEERS: Mapping[str, Strategy] = {
    "server_cold": Strategy("server_cold", server_cold, packs=True),
    "server_warm": Strategy("server_warm", server_warm),
}


@contextmanager
def _serving(run: Run, n_slots: int, *arguments: str) -> Iterator[LlamaServer]:
    """A server after one warm-up request, started while the run's clock is stopped; its KV memory is counted."""
    most = max(len(branch.prompt) + branch.max_tokens for branch in run.branches)
    settings = replace(run.settings, n_ctx=n_slots * (len(run.tokens) + most + 1))
    n_bytes = lab.context_bytes(run.model, **settings.layout(run.model.on_gpu))
    with ExitStack() as stack:
        with run.stopped():
            server = stack.enter_context(LlamaServer(run.model, settings, n_slots, *arguments))
            server.complete(run.branches[0].prompt.tolist(), 2, cache_prompt=False)
        with run.holding(n_bytes):
            yield server


def _asked(run: Run, server: LlamaServer, agent: Branch, **body: Any) -> tuple[float, float]:
    """Ask for an agent's answer. Returns when its first and its last token arrived, in ms since the run's start."""
    now, first = run.now, list[float]()
    tokens = server.complete(run.whole_prompt(agent).tolist(), agent.max_tokens, lambda: first.append(now()), **body)
    agent.tokens += [token for token in tokens if not run.model.is_eog(token)]
    return first[0], now()


def _record(run: Run, agent: Branch, start: float, first: float, end: float) -> None:
    run.spans += [Span(agent.name, "branch", start, first, 0), Span(agent.name, "generate", first, end, 0)]
