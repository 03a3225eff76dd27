"""Server: an endpoint for agents that speak the OpenAI API, in threads of this process, until it is closed."""

import re
import socket
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pandas as pd
import uvicorn

from swarmkv_lab.errors import ContextBudgetError, SwarmKVError, not_one_of, whole_number
from swarmkv_lab.files import reason
from swarmkv_lab.llama.conversation import Conversation
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.serve.app import app
from swarmkv_lab.serve.asked import Asked
from swarmkv_lab.serve.engine import Engine, Request

LAYOUTS = ("as_sent", "document_first", "composed")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_CELLS = 8192
_BYTES = 16  # of text for a token, at most: what cannot fit is not tokenized
_PHASES = (("waited", "arrived", "started"), ("prefill", "started", "first"), ("generate", "first", "ended"))


class Server:
    """An OpenAI-compatible endpoint over a model; ``url`` is the base URL that agents are given.

    layout: what prompts share. "as_sent": what they begin with, exactly. "document_first": the same, of other prompts:
    the longest of the user's texts is moved before the system prompt. "composed": also long runs of tokens that another
    prompt has behind other ones: their cells are taken as they are, but for the first ``recompute`` tokens. For this
    all prompts begin at position ``room``, so that longer system prompts fit before the document. Answers then differ.
    exact: one request at a time, its own cells right behind its document's (its longest text, up to the last blank
    line): the bits of fan_out's "shared". Otherwise last bits depend on what else is in a batch, as in every server.
    cache: of exact, documents are looked for in the lab's own folder, and kept there.
    host, port (0: a free one), key (a bearer token), hosts: names by which it may be called beside its own.
    settings: as in Context; by default 8,192 cells for up to 64 sequences, and windows kept whole (swa_full).
    Without a temperature answers are greedy. Raises SwarmKVError for what does not fit together, or a port in use.
    """

    def __init__(
        self,
        model: Model,
        *,
        layout: str = "as_sent",
        exact: bool = False,
        cache: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        key: str | None = None,
        hosts: Collection[str] = (),
        recompute: int = 32,
        room: int | None = None,
        most_waiting: int = 256,
        **settings: Any,
    ) -> None:
        if layout not in LAYOUTS:
            raise SwarmKVError(f"layout {not_one_of(layout, LAYOUTS)}")
        if layout == "composed" and (exact or model.kind.no_parts):
            raise SwarmKVError(f"composed is not exact, and not for every model: {model.kind.no_parts or 'exact=True'}")
        if cache and not exact:
            raise SwarmKVError("cache=True needs exact=True: other last bits are not what the lab's folder holds")
        if host not in _LOOPBACK and not key:
            raise SwarmKVError(f"host={host!r} lets other machines in: give a key, which they must send")
        self.model, self.layout, self.key, self.hosts = model, layout, key, {*_LOOPBACK, host, *hosts}
        chosen = ContextSettings.of(**{"n_seq_max": 64, "swa_full": not model.kind.recurrent} | settings)
        chosen = chosen.sized(min(_CELLS, model.n_ctx_train))
        places = 0 if layout != "composed" else min(1024, chosen.cells // 4) if room is None else room
        self._conversation = Conversation(model)
        self.reading = ThreadPoolExecutor(2, "swarmkv-reading")
        """threads in which prompts are tokenized: not those that answers need"""
        self._socket = _bound(host, whole_number("port", port, 0, 65_535))
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._socket.getsockname()[1]}/v1"
        """what agents are given as the base URL"""
        counts = {"room": whole_number("room", places), "recompute": whole_number("recompute", recompute)}
        try:
            self.engine = Engine(model, chosen, exact=exact, cache=cache, waiting=most_waiting, **counts)
        except BaseException:
            self._socket.close()
            raise
        self.most_bytes = (1 << 20) + 4 * _BYTES * self.engine.limit
        self._started = time.perf_counter()
        how = uvicorn.Config(
            app(self), log_level="warning", lifespan="off", access_log=False, timeout_graceful_shutdown=5, ws="none"
        )
        self._http = uvicorn.Server(how)
        self._thread = threading.Thread(target=self._http.run, args=([self._socket],), name="swarmkv-http", daemon=True)
        self._thread.start()
        while not self._http.started and self._thread.is_alive():
            time.sleep(0.005)

    def work(self, asked: Asked, deliver: Callable[[Any], None]) -> Request:
        """A request for the engine: its messages in tokens. Raises SwarmKVError for what has none, or too many."""
        size = sum(len(text) for one in asked.said for text in (*one.texts, *(given for _, given in one.calls)))
        if size > _BYTES * self.engine.limit:
            raise ContextBudgetError(
                f"this model's maximum context length here is {self.engine.limit:,} tokens, and the messages have "
                f"{size:,} characters"
            )
        said, tools, first = asked.said, asked.tools, self.layout == "document_first"
        if first:
            said, tools = self._conversation.document_first(said, tools)
        prompt = self._conversation.prompt(said, tools, cut=first or self.engine.exact)
        marked = {"document_end": prompt.document_end, "marks": prompt.marks}
        return Request(prompt.tokens, asked.max_tokens, asked.sampler(self.model), deliver, **marked)  # type: ignore[arg-type]

    def usage(self, work: Request) -> dict[str, Any]:
        """OpenAI's usage of a request, and how its prompt was come by."""
        n, details = len(work.tokens), {"cached_tokens": work.shared, "layout": self.layout, "shared_by": work.how}
        total = n + work.n_answer
        return {
            "prompt_tokens": n, "completion_tokens": work.n_answer, "total_tokens": total,
            "prompt_tokens_details": details,
        }  # fmt: skip

    def stats(self) -> pd.DataFrame:
        """A row for each request that has ended: its tokens, shared and computed, and times in ms."""
        done, at = self._ended()
        rows = [(len(one.tokens), one.shared, one.computed, one.n_answer, one.how, one.ended) for one in done]
        names = ["prompt_tokens", "shared_tokens", "computed_tokens", "answer_tokens", "how", "ended"]
        times = {"arrived_ms": at.arrived, "ttft_ms": at["first"] - at.arrived, "end_to_end_ms": at.ended - at.arrived}
        return pd.DataFrame(rows, columns=names, index=at.index).assign(**times).reset_index()

    def timeline(self) -> pd.DataFrame:
        """A row for each phase of each request: request, phase (waited, prefill, generate), start_ms, end_ms."""
        at = self._ended()[1]
        phases = [
            pd.DataFrame({"phase": name, "start_ms": at[start], "end_ms": at[end]}) for name, start, end in _PHASES
        ]
        return pd.concat(phases).dropna().sort_values("start_ms").reset_index()

    def _ended(self) -> tuple[list[Request], pd.DataFrame]:
        """Requests, and when what happened to them, ms since the server's start."""
        done = list(self.engine.done)
        times = pd.DataFrame([one.times for one in done], columns=["arrived", "started", "first", "ended"], dtype=float)
        return done, 1e3 * (times - self._started).set_index(pd.RangeIndex(1, len(done) + 1, name="request"))

    def metrics(self) -> str:
        """Counters and gauges in Prometheus' text."""
        engine = self.engine
        counts = {"prompt_tokens": 0, "computed_tokens": 0, "shared_tokens": 0, "generated_tokens": 0} | engine.counts
        now = {"requests_running": len(engine.live), "requests_waiting": len(engine.queue)}
        now |= {"cells": engine.ctx.n_ctx, "cells_free": engine.prefixes.free}
        lines = [(f"{name}_total", "counter", n) for name, n in sorted(counts.items())]
        lines += [(name, "gauge", n) for name, n in now.items()]
        clean = [(f"swarmkv_{re.sub('[^a-z_]', '_', name)}", kind, n) for name, kind, n in lines]
        return "".join(f"# TYPE {name} {kind}\n{name} {n}\n" for name, kind, n in clean)

    def close(self) -> None:
        """End the requests that are there, each with an error, then the endpoint. Safe to call twice."""
        self.engine.close()
        self._http.should_exit = True
        self._thread.join()
        self._socket.close()
        self.reading.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Server({self.url}, {self.model.name}, {self.layout})"


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        raise SwarmKVError(f"{host}:{port} cannot be listened on: {reason(error)}") from error
    return bound
