"""Server: an endpoint for agents that speak the OpenAI API, in threads of this process, until it is closed."""

import asyncio
import hmac
import json
import math
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import uvicorn
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Http
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from swarmkv_lab.errors import ContextBudgetError, SwarmKVError, not_one_of, whole_number
from swarmkv_lab.files import reason
from swarmkv_lab.llama.conversation import Conversation
from swarmkv_lab.llama.grammar import SchemaError
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.serve.dialects import Chat, Event, Responses
from swarmkv_lab.serve.engine import Engine, Refused, Request

LAYOUTS = ("as_sent", "document_first", "composed")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_BODY_S = 60  # for a body to come
_PAGES = ("/v1/models", "/health", "/metrics")
_DIALECTS = {"/v1/chat/completions": Chat, "/v1/responses": Responses}
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
_TIMES = ("arrived", "started", "first", "ended")
_PHASES = ("waited", "prefill", "generate")
"""what goes on between these times"""


class Server(AbstractContextManager["Server"]):
    """An OpenAI-compatible endpoint over a model; ``url`` is the base URL that agents are given.

    layout: what prompts share. "as_sent": what they begin with, exactly. "document_first": the same, of other prompts:
    the longest of the user's texts is moved before the system prompt. "composed": also long runs of tokens that another
    prompt has behind other ones: their cells are taken as they are, but for the first ``recompute`` tokens (8: behind
    some prompt more of them repair little, as notebook 10 shows). For this all prompts begin at position ``room``, so
    that longer system prompts fit before the document. Answers then differ.
    exact: one request at a time, its own cells right behind its document's (its longest text, up to the last blank
    line): the bits of fan_out's "shared". Otherwise last bits depend on what else is in a batch, as in every server.
    cache: what was served (of exact, the documents) is kept in the lab's own folder when the server is closed, and is
    there after a restart.
    host, port (0: a free one), key (a bearer token), hosts: names by which it may be called beside its own.
    settings: as in Context; by default 8,192 cells for up to 64 sequences, and windows kept whole (swa_full).
    Without a temperature answers are greedy. Raises SwarmKVError for what does not fit together, or a port in use.
    """

    def __init__(
        self, model: Model, *, layout: str = "as_sent", exact: bool = False, cache: bool = False,
        host: str = "127.0.0.1", port: int = 0, key: str | None = None, hosts: Collection[str] = (),
        recompute: int = 8, room: int | None = None, most_waiting: int = 256, **settings: Any,
    ) -> None:  # fmt: skip
        if layout not in LAYOUTS:
            raise SwarmKVError(f"layout {not_one_of(layout, LAYOUTS)}")
        if layout == "composed" and (exact or model.kind.no_parts):
            raise SwarmKVError(f"composed is not exact, and not for every model: {model.kind.no_parts or 'exact=True'}")
        if host not in _LOOPBACK and not key:
            raise SwarmKVError(f"host={host!r} lets other machines in: give a key, which they must send")
        self.model, self.layout, self._key, self._hosts = model, layout, key, {*_LOOPBACK, host, *hosts}
        chosen = ContextSettings(**{"n_seq_max": 64, "swa_full": not model.kind.recurrent} | settings)
        chosen = chosen.sized(min(8192, model.n_ctx_train))
        places = 0 if layout != "composed" else min(1024, chosen.cells // 4) if room is None else room
        counts = {"room": whole_number("room", places), "recompute": whole_number("recompute", recompute)}
        self._conversation = Conversation(model)
        place, is_ipv6 = (host, whole_number("port", port, 0, 65_535)), ":" in host
        self.engine = Engine(model, chosen, exact=exact, cache=cache, **counts)
        try:
            self._socket = socket.create_server(place, family=socket.AF_INET6 if is_ipv6 else socket.AF_INET)
        except OSError as error:
            self.engine.close()
            raise SwarmKVError(f"{host}:{port} cannot be listened on: {reason(error)}") from error
        self.url = f"http://{f'[{host}]' if is_ipv6 else host}:{self._socket.getsockname()[1]}/v1"
        """what agents are given as the base URL"""
        self.most_bytes = (1 << 20) + 64 * self.engine.limit
        self._most_waiting, self._n_reading = most_waiting, 0
        self._reading = ThreadPoolExecutor(2, "swarmkv-reading")  # not in threads that answers need
        self._compiling = ThreadPoolExecutor(2, "swarmkv-compiling")  # a schema may take seconds
        self._started = time.perf_counter()
        quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "lifespan": "off", "ws": "none"}
        how: dict[str, Any] = {"interface": "asgi3", "timeout_graceful_shutdown": 5} | quiet
        self._http = uvicorn.Server(uvicorn.Config(self._endpoint, **how))
        self._thread = threading.Thread(target=self._http.run, args=([self._socket],), name="swarmkv-http", daemon=True)
        self._thread.start()

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
        engine = self.engine
        now = {"requests_running": len(engine.live), "requests_waiting": len(engine.queue)}
        now |= {"cells": engine.ctx.n_ctx, "cells_free": engine.prefixes.free}
        lines = [(f"{name}_total", "counter", n) for name, n in sorted(engine.counts.items())]
        lines += [(name, "gauge", n) for name, n in now.items()]
        return "".join(f"# TYPE swarmkv_{name} {kind}\nswarmkv_{name} {n}\n" for name, kind, n in lines)

    # -- requests and answers

    async def _endpoint(self, scope: Scope, receive: Receive, send: Send) -> None:
        http = Http(scope, receive)
        try:
            path = http.url.path
            self._check(http, needs_key=path != "/health")
            if path not in (*_DIALECTS, *_PAGES):
                raise Refused(404, f"{path:.200} is not one of {', '.join([*_DIALECTS, *_PAGES])}")
            if http.method not in (("POST",) if path in _DIALECTS else ("GET", "HEAD")):
                raise Refused(405, f"{path} is not for {http.method}")
            response = await self._answered(http) if path in _DIALECTS else self._page(path)
        except ClientDisconnect:
            return
        except Exception as error:
            status, about = _failure(error)
            response = JSONResponse({"error": about}, status, {"Retry-After": "2"} if status in (429, 503) else None)
        await response(scope, receive, send)

    def _check(self, http: Http, needs_key: bool) -> None:
        """Refuse other sites' pages, whatever name they gave this machine, and who has no key."""
        names: list[str | None] = [None]
        with suppress(ValueError):
            given = [f"//{http.headers.get('host', '')}", *http.headers.getlist("origin")]
            names = [urlsplit(url).hostname for url in given]
        if not all(name in self._hosts for name in names):
            raise Refused(403, f"Host and Origin are to be one of {', '.join(sorted(self._hosts))}")
        sent = http.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if needs_key and self._key and not hmac.compare_digest(sent, self._key.encode()):
            raise Refused(401, "the key is wrong: send it as a bearer token")

    def _page(self, path: str) -> Response:
        if path == "/metrics":
            return PlainTextResponse(self.metrics(), media_type="text/plain; version=0.0.4")
        model = {"id": self.model.name, "object": "model", "created": 0, "owned_by": "swarmkv-lab"}
        return JSONResponse({"status": "ok"} if path == "/health" else {"object": "list", "data": [model]})

    async def _body(self, http: Http) -> Any:
        """The JSON of a body, if it is small enough."""
        data = bytearray()
        try:
            async with asyncio.timeout(_BODY_S):
                async for piece in http.stream():
                    data += piece
                    if len(data) > self.most_bytes:
                        raise Refused(413, f"a body has at most {self.most_bytes:,} bytes here")
            return json.loads(data, parse_constant=int)  # NaN and its like are no JSON
        except TimeoutError as error:
            raise Refused(408, f"the body did not come in {_BODY_S} s") from error
        except (ValueError, RecursionError) as error:
            raise SwarmKVError(f"the body is not JSON: {error}") from error

    def _read(self, path: str, body: Any, deliver: Callable[[Any], None]) -> tuple[Chat, Request]:
        """What a body asks for, and as a request for the engine. Raises SwarmKVError for what cannot be answered."""
        chat, exact = _DIALECTS[path](self.model, body), self.engine.exact
        asked = chat.messages, chat.tools
        if layout_first := self.layout == "document_first":
            asked = self._conversation.document_first(*asked)
        tokens, end, marks = self._conversation.prompt(*asked, cut=layout_first or exact)
        return chat, Request(tokens, chat.max_tokens, chat.sampler, deliver, frozenset({end}) if exact else marks)

    async def _answered(self, http: Http) -> Response:
        """The reply to a request, once it has a token: what fails before has a status."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Any]()
        deliver: Any = lambda event: loop.call_soon_threadsafe(events.put_nowait, event)  # noqa: E731
        if (n_waiting := self._n_reading + len(self.engine.queue)) >= self._most_waiting:
            raise Refused(429, f"{n_waiting:,} requests are waiting already: try again later")
        self._n_reading += 1
        try:
            body = await self._body(http)
            pool = self._compiling if _has_schema(body) else self._reading
            chat, request = await loop.run_in_executor(pool, self._read, http.url.path, body, deliver)
        finally:
            self._n_reading -= 1
        self.engine.submit(request)

        async def gone() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass
            events.put_nowait("cancelled")

        watch, pieces = asyncio.create_task(gone()), self._pieces(chat, request, events)
        try:
            await anext(pieces)
            headers = {"X-SwarmKV": f"layout={self.layout}; how={request.how}; shared={request.shared}"}
            if chat.stream:
                return StreamingResponse(pieces, media_type="text/event-stream", headers=headers)
            async for _ in pieces:
                pass
            return JSONResponse(chat.whole(), headers=headers)
        except BaseException:
            await pieces.aclose()
            raise
        finally:
            watch.cancel()

    async def _pieces(self, chat: Chat, request: Request, events: asyncio.Queue[Any]) -> AsyncGenerator[bytes, None]:
        """An answer as it is streamed: nothing at first, once there is a token."""
        try:
            event = await events.get()
            if begun := isinstance(event, int) or event in ("stop", "length"):
                yield b""
                yield chat.open()
            while isinstance(event, int):
                yield await asyncio.to_thread(chat.add, event)
                event = "stop" if chat.answer.stopped else await events.get()
            if event == "cancelled":
                raise ClientDisconnect
            if isinstance(event, Exception):
                if begun and chat.stream:
                    yield chat.fail(f"{event}"[:2000])
                    return
                ours = not isinstance(event, ContextBudgetError | SchemaError | Refused)  # the request was sound
                raise Refused(500, f"{type(event).__name__}: {event}") if ours else event
            n, made, details = len(request.tokens), request.n_answer, {"cached_tokens": request.shared}
            usage: Event = {"prompt_tokens": n, "completion_tokens": made, "total_tokens": n + made}
            usage["prompt_tokens_details"] = details | {"layout": self.layout, "shared_by": request.how}
            yield await asyncio.to_thread(chat.close, event, usage)
        finally:
            request.cancelled = True  # if it goes on, nobody waits for it any more

    def close(self) -> None:
        """End the requests that are there, each with an error, then the endpoint. Safe to call twice."""
        self.engine.close()
        self._http.should_exit = True
        self._thread.join()
        self._socket.close()
        for pool in (self._reading, self._compiling):
            pool.shutdown(cancel_futures=True)

    def __exit__(self, *exc: object) -> None:
        self.close()


def _has_schema(body: Any) -> bool:
    """Whether an answer may have to keep to a schema."""
    asked = body if isinstance(body, dict) else {}
    is_forced = (asked.get("tool_choice") or "auto") not in ("auto", "none")
    return bool(is_forced or asked.get("response_format") or asked.get("text"))


def _failure(error: Exception) -> tuple[int, Event]:
    """The HTTP status, and OpenAI's error object."""
    status = getattr(error, "status", 400 if isinstance(error, SwarmKVError) else 500)
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    code = "context_length_exceeded" if isinstance(error, ContextBudgetError) else _CODES.get(status)
    return status, {"message": f"{error}"[:2000], "type": kind, "param": None, "code": code}
