"""Server: an endpoint for agents that speak the OpenAI API, in threads of this process, until it is closed."""

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Self

import pandas as pd
import uvicorn

from swarmkv_lab.errors import ContextBudgetError, SwarmKVError, not_one_of, whole_number
from swarmkv_lab.files import reason
from swarmkv_lab.llama.conversation import Conversation
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import Constrained, Noted, Sampler
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.serve.app import app
from swarmkv_lab.serve.asked import Asked
from swarmkv_lab.serve.engine import Engine, Request

LAYOUTS = ("as_sent", "document_first", "composed")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_CELLS = 8192
_LONGEST = 16  # characters of a token, on average, at most: what cannot fit is not tokenized
_TIMES = ("arrived", "started", "first", "ended")
_PHASES = ("waited", "prefill", "generate")
"""what goes on between these times"""


class Server:
    """An OpenAI-compatible endpoint over a model; ``url`` is the base URL that agents are given.

    layout: what prompts share. "as_sent": what they begin with, exactly. "document_first": the same, of other prompts:
    the longest of the user's texts is moved before the system prompt. "composed": also long runs of tokens that another
    prompt has behind other ones: their cells are taken as they are, but for the first ``recompute`` tokens. For this
    all prompts begin at position ``room``, so that longer system prompts fit before the document. Answers then differ.
    exact: one request at a time, its own cells right behind its document's (its longest text, up to the last blank
    line): the bits of fan_out's "shared". Otherwise last bits depend on what else is in a batch, as in every server.
    cache: what was served is kept in the lab's own folder when the server is closed (of exact, once it is read),
    and is there after a restart.
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
        if host not in _LOOPBACK and not key:
            raise SwarmKVError(f"host={host!r} lets other machines in: give a key, which they must send")
        self.model, self.layout, self.key, self.hosts = model, layout, key, {*_LOOPBACK, host, *hosts}
        chosen = ContextSettings.of(**{"n_seq_max": 64, "swa_full": not model.kind.recurrent} | settings)
        chosen = chosen.sized(min(_CELLS, model.n_ctx_train))
        places = 0 if layout != "composed" else min(1024, chosen.cells // 4) if room is None else room
        counts = {"room": whole_number("room", places), "recompute": whole_number("recompute", recompute)}
        self._conversation = Conversation(model)
        place, is_ipv6 = (host, whole_number("port", port, 0, 65_535)), ":" in host
        try:
            self._socket = socket.create_server(place, family=socket.AF_INET6 if is_ipv6 else socket.AF_INET)
        except OSError as error:
            raise SwarmKVError(f"{host}:{port} cannot be listened on: {reason(error)}") from error
        try:
            self.engine = Engine(model, chosen, exact=exact, cache=cache, waiting=most_waiting, **counts)
        except BaseException:
            self._socket.close()
            raise
        self.url = f"http://{f'[{host}]' if is_ipv6 else host}:{self._socket.getsockname()[1]}/v1"
        """what agents are given as the base URL"""
        self.most_bytes = (1 << 20) + 4 * _LONGEST * self.engine.limit
        self.reading = ThreadPoolExecutor(2, "swarmkv-reading")
        """threads in which prompts are tokenized: not those that answers need"""
        self._started = time.perf_counter()
        quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "lifespan": "off", "ws": "none"}
        self._http = uvicorn.Server(uvicorn.Config(app(self), timeout_graceful_shutdown=5, **quiet))
        self._thread = threading.Thread(target=self._http.run, args=([self._socket],), name="swarmkv-http", daemon=True)
        self._thread.start()
        while not self._http.started and self._thread.is_alive():
            time.sleep(0.005)

    def work(self, parse: Callable[[Any], Asked], body: Any, deliver: Callable[[Any], None]) -> tuple[Asked, Request]:
        """What a body asks for, and as a request for the engine. Raises SwarmKVError for what cannot be answered."""
        asked, layout_first = parse(body), self.layout == "document_first"
        texts = [text for one in asked.said for text in (*one.texts, *(given for _, given in one.calls))]
        texts += map(json.dumps, asked.tools)
        least = len(asked.said) + sum(map(len, texts)) // _LONGEST
        if least > self.engine.limit:
            raise ContextBudgetError(
                f"this model's maximum context length here is {self.engine.limit:,} tokens, and the messages have at "
                f"least {least:,}"
            )
        chat = asked.said, asked.tools
        chat = self._conversation.document_first(*chat) if layout_first else chat
        tokens, end, marks = self._conversation.prompt(*chat, cut=layout_first or self.engine.exact)
        sampler = Constrained(self.model, asked.grammar, asked.sampling) if asked.grammar else Sampler(asked.sampling)
        sampler = sampler if asked.logprobs is None else Noted(sampler, asked.logprobs)
        return asked, Request(tokens, asked.max_tokens, sampler, deliver, document_end=end, marks=marks)

    def usage(self, work: Request) -> dict[str, Any]:
        """OpenAI's usage of a request, and how its prompt was come by."""
        n, details = len(work.tokens), {"cached_tokens": work.shared, "layout": self.layout, "shared_by": work.how}
        counts = {"prompt_tokens": n, "completion_tokens": work.n_answer, "total_tokens": n + work.n_answer}
        return counts | {"prompt_tokens_details": details}

    def stats(self) -> pd.DataFrame:
        """A row for each request that has ended: its tokens, shared and computed; its times, ms since the start."""
        done = list(self.engine.done)
        counts = [(len(one.tokens), one.shared, one.computed, one.n_answer, one.how, one.ended) for one in done]
        names = ["prompt_tokens", "shared_tokens", "computed_tokens", "answer_tokens", "how", "ended"]
        frame = pd.DataFrame(counts, columns=names, index=pd.RangeIndex(1, len(done) + 1, name="request"))
        for name in _TIMES:
            frame[f"{name}_ms"] = [1e3 * (one.times.get(name, math.nan) - self._started) for one in done]
        since = {"ttft_ms": frame["first_ms"], "end_to_end_ms": frame["ended_ms"]}
        return frame.assign(**{name: at - frame["arrived_ms"] for name, at in since.items()}).reset_index()

    def timeline(self) -> pd.DataFrame:
        """A row for each phase of each request: request, phase (waited, prefill, generate), start_ms, end_ms."""
        stats = self.stats().set_index("request")
        times = [{"start_ms": stats[f"{start}_ms"], "end_ms": stats[f"{end}_ms"]} for start, end in pairwise(_TIMES)]
        phases = [pd.DataFrame({"phase": name} | at) for name, at in zip(_PHASES, times, strict=True)]
        return pd.concat(phases).dropna().sort_values("start_ms", kind="stable").reset_index()

    def metrics(self) -> str:
        """Counters and gauges in Prometheus' text."""
        engine, names = self.engine, ("prompt_tokens", "computed_tokens", "shared_tokens", "generated_tokens")
        now = {"requests_running": len(engine.live), "requests_waiting": len(engine.queue)}
        now |= {"cells": engine.ctx.n_ctx, "cells_free": engine.prefixes.free}
        counts = dict.fromkeys(names, 0) | dict(engine.counts)
        lines = [(f"swarmkv_{name}_total", "counter", n) for name, n in sorted(counts.items())]
        lines += [(f"swarmkv_{name}", "gauge", n) for name, n in now.items()]
        return "".join(f"# TYPE {name} {kind}\n{name} {n}\n" for name, kind, n in lines)

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
