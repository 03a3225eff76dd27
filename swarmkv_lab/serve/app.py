"""App: what is refused before anything is done, an answer's way to who asked, and requests that nobody waits for."""

import asyncio
import hmac
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from swarmkv_lab.errors import ContextBudgetError, SwarmKVError
from swarmkv_lab.serve import asked as dialects
from swarmkv_lab.serve.engine import Busy
from swarmkv_lab.serve.engine import Request as Work
from swarmkv_lab.serve.replies import ChatReply, ResponseReply

if TYPE_CHECKING:
    from swarmkv_lab.serve.server import Server

_BODY_S = 60  # for a body to come
_DIALECTS: dict[str, Any] = {
    "/v1/chat/completions": (dialects.chat, ChatReply),
    "/v1/responses": (dialects.responses, ResponseReply),
}
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


class Refused(SwarmKVError):
    """An HTTP status, and what is wrong."""

    def __init__(self, status: int, about: str) -> None:
        super().__init__(about)
        self.status = status


def app(server: "Server") -> ASGIApp:
    """The endpoint of a server."""
    model = {"id": server.model.name, "object": "model", "created": 0, "owned_by": "swarmkv-lab"}
    pages: dict[str, Callable[[], Response]] = {
        "/v1/models": lambda: JSONResponse({"object": "list", "data": [model]}),
        "/health": lambda: JSONResponse({"status": "ok"}),
        "/metrics": lambda: PlainTextResponse(server.metrics(), media_type="text/plain; version=0.0.4"),
    }
    n_reading = 0

    async def answer(request: Request) -> Response:
        nonlocal n_reading
        parse, dialect = _DIALECTS[request.url.path]
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Any]()
        deliver: Any = lambda event: loop.call_soon_threadsafe(events.put_nowait, event)  # noqa: E731
        if (n_waiting := n_reading + len(server.engine.queue)) >= server.engine.most_waiting:
            raise Busy(f"{n_waiting:,} requests are waiting already: try again later")
        n_reading += 1
        try:
            body = await _body(server, request)
            asked, work = await loop.run_in_executor(server.reading, server.work, parse, body, deliver)
        finally:
            n_reading -= 1
        server.engine.submit(work)
        return await _answered(server, request, work, events, dialect(asked, server.model, work.sampler))

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            path = request.url.path
            _check(server, request, needs_key=path != "/health")
            if path not in (*pages, *_DIALECTS):
                raise Refused(404, f"{path:.200} is not one of {', '.join([*_DIALECTS, *pages])}")
            if request.method not in (("POST",) if path in _DIALECTS else ("GET", "HEAD")):
                raise Refused(405, f"{path} is not for {request.method}")
            response = await answer(request) if path in _DIALECTS else pages[path]()
        except ClientDisconnect:
            return
        except Exception as error:
            status, about = failure(error)
            response = JSONResponse({"error": about}, status, {"Retry-After": "2"} if status in (429, 503) else None)
        await response(scope, receive, send)

    return endpoint


def failure(error: Exception) -> tuple[int, dict[str, Any]]:
    """The HTTP status, and OpenAI's error object."""
    status = getattr(error, "status", 400 if isinstance(error, SwarmKVError) else 500)
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    code = "context_length_exceeded" if isinstance(error, ContextBudgetError) else _CODES.get(status)
    return status, {"message": f"{error}"[:2000], "type": kind, "param": None, "code": code}


def _check(server: "Server", request: Request, needs_key: bool) -> None:
    """Refuse other sites' pages, whatever name they gave this machine, and who has no key."""
    names: list[str | None] = [None]
    with suppress(ValueError):
        given = [f"//{request.headers.get('host', '')}", *request.headers.getlist("origin")]
        names = [urlsplit(url).hostname for url in given]
    if not all(name in server.hosts for name in names):
        raise Refused(403, f"Host and Origin are to be one of {', '.join(sorted(server.hosts))}")
    sent = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    if needs_key and server.key and not hmac.compare_digest(sent, server.key.encode()):
        raise Refused(401, "the key is wrong: send it as a bearer token")


async def _body(server: "Server", request: Request) -> Any:
    """The JSON of a body, if it is small enough."""
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for piece in request.stream():
                data += piece
                if len(data) > server.most_bytes:
                    raise Refused(413, f"a body has at most {server.most_bytes:,} bytes here")
        return json.loads(data, parse_constant=int)  # NaN and its like are no JSON
    except TimeoutError as error:
        raise Refused(408, f"the body did not come in {_BODY_S} s") from error
    except (ValueError, RecursionError) as error:
        raise SwarmKVError(f"the body is not JSON: {error}") from error


async def _answered(
    server: "Server", request: Request, work: Work, events: asyncio.Queue[Any], reply: ChatReply
) -> Response:
    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        events.put_nowait("cancelled")

    watch, pieces = asyncio.create_task(gone()), _pieces(server, work, events, reply)
    try:
        await anext(pieces)
        headers = {"X-SwarmKV": f"layout={server.layout}; how={work.how}; shared={work.shared}"}
        if reply.asked.stream:
            return StreamingResponse(pieces, media_type="text/event-stream", headers=headers)
        async for _ in pieces:
            pass
        return JSONResponse(reply.whole(), headers=headers)
    except BaseException:
        await pieces.aclose()
        raise
    finally:
        watch.cancel()


async def _pieces(
    server: "Server", work: Work, events: asyncio.Queue[Any], reply: ChatReply
) -> AsyncGenerator[bytes, None]:
    """An answer as it is streamed: nothing at first, once there is a token, and what fails before has a status."""
    try:
        event = await events.get()
        _raise(event)
        yield b""
        yield reply.open()
        while isinstance(event, int):
            yield await asyncio.to_thread(reply.take, event)
            event = "stop" if reply.saying.stopped else await events.get()
        if reply.asked.stream and event not in ("stop", "length"):
            yield reply.fail(f"{event if isinstance(event, Exception) else 'the server was closed'}"[:2000])
            return
        _raise(event)
        yield await asyncio.to_thread(reply.close, event, server.usage(work))
    finally:
        server.engine.cancel(work)


def _raise(event: Any) -> None:
    if event == "cancelled":
        raise ClientDisconnect
    if isinstance(event, ContextBudgetError) or hasattr(event, "status"):
        raise event
    if isinstance(event, Exception):  # the request was sound
        raise Refused(500, f"{type(event).__name__}: {event}")
