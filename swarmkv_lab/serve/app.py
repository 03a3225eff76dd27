"""App: the endpoint's routes, what is refused before anything is done, and requests that nobody waits for any more."""

import asyncio
import hmac
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from swarmkv_lab.errors import ContextBudgetError, SwarmKVError
from swarmkv_lab.llama.conversation import Saying
from swarmkv_lab.serve import asked as dialects
from swarmkv_lab.serve.engine import Request as Work
from swarmkv_lab.serve.replies import ChatReply, ResponseReply

if TYPE_CHECKING:
    from swarmkv_lab.serve.server import Server

_BODY_S = 60  # for a body to come
_RETRY_S = "2"
_PARSE = {"/v1/chat/completions": (dialects.chat, ChatReply), "/v1/responses": (dialects.responses, ResponseReply)}


class _Refused(Exception):
    """An HTTP status, and what is wrong."""

    def __init__(self, status: int, about: str) -> None:
        super().__init__(about)
        self.status = status


def app(server: "Server") -> Starlette:
    """The routes of a server."""

    def guarded(answer: Callable[[Request], Any], *, free: bool = False) -> Callable[[Request], Any]:
        async def guarding(request: Request) -> Response:
            try:
                _check(server, request, free)
                response: Response = await answer(request)
                return response
            except ClientDisconnect:
                return Response(status_code=499)
            except (SwarmKVError, _Refused) as error:
                status, about = failure(error)
                return JSONResponse(
                    {"error": about}, status, {"Retry-After": _RETRY_S} if status in (429, 503) else None
                )

        return guarding

    async def models(request: Request) -> Response:
        one = {"id": server.model.name, "object": "model", "created": 0, "owned_by": "swarmkv-lab"}
        return JSONResponse({"object": "list", "data": [one]})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(server.metrics(), media_type="text/plain; version=0.0.4")

    async def answers(request: Request) -> Response:
        parse, reply = _PARSE[request.url.path]
        asked = await asyncio.to_thread(parse, await _body(server, request))
        return await _answer(server, request, asked, reply)

    routes = [Route(path, guarded(answers), methods=["POST"]) for path in _PARSE]
    routes += [Route("/v1/models", guarded(models)), Route("/health", guarded(health, free=True))]
    return Starlette(
        routes=[*routes, Route("/metrics", guarded(metrics))],
        exception_handlers={404: _unknown, 405: _unknown, 500: _unknown},
    )


def failure(error: Exception) -> tuple[int, dict[str, Any]]:
    """The HTTP status, and OpenAI's error object."""
    status = getattr(error, "status", 400)
    kind, code = "invalid_request_error", None
    if status == 429:
        kind, code = "rate_limit_error", "rate_limit_exceeded"
    elif status >= 500:
        kind = "server_error"
    elif isinstance(error, ContextBudgetError):
        code = "context_length_exceeded"
    elif status == 401:
        code = "invalid_api_key"
    return status, {"message": str(error)[:2000], "type": kind, "param": None, "code": code}


async def _unknown(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    kind = "server_error" if status == 500 else "invalid_request_error"
    message = f"{request.method} {request.url.path}: {getattr(error, 'detail', 'a fault of the server')}"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)


def _check(server: "Server", request: Request, free: bool) -> None:
    """Refuse other sites' pages, whatever name they gave this machine, and who has no key."""
    with suppress(ValueError):
        names = [urlsplit(f"//{request.headers.get('host', '')}").hostname]
        names += [urlsplit(origin).hostname for origin in request.headers.getlist("origin")]
        if all(name in server.hosts for name in names):
            given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            if server.key and not free and not hmac.compare_digest(given, server.key.encode()):
                raise _Refused(401, "the key is wrong: send it as a bearer token")
            return
    raise _Refused(403, f"Host and Origin are to be one of {', '.join(sorted(server.hosts))}")


async def _body(server: "Server", request: Request) -> Any:
    """The JSON of a body, if it is small enough."""
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for piece in request.stream():
                data += piece
                if len(data) > server.most_bytes:
                    raise _Refused(413, f"a body has at most {server.most_bytes:,} bytes here")
        return json.loads(data)
    except TimeoutError as error:
        raise _Refused(408, f"the body did not come in {_BODY_S} s") from error
    except (ValueError, RecursionError) as error:
        raise SwarmKVError(f"the body is not JSON: {error}") from error


async def _answer(server: "Server", request: Request, asked: dialects.Asked, dialect: Any) -> Response:
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def deliver(event: Any) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    work = await loop.run_in_executor(server.reading, server.work, asked, deliver)
    server.engine.submit(work)
    pieces = _pieces(server, work, asked, events, dialect(asked, server.model.name))
    gone = asyncio.create_task(_gone(request, events))
    try:
        opened = await anext(pieces)
        headers = {"X-SwarmKV": f"layout={server.layout}; how={work.how}; shared={work.shared}"}
        if asked.stream:
            whole = _chained(opened, pieces)
            return StreamingResponse(whole, media_type="text/event-stream", headers=headers)
        *_, reply = [piece async for piece in pieces]
        return Response(reply, media_type="application/json", headers=headers)
    except BaseException:
        await pieces.aclose()
        raise
    finally:
        gone.cancel()


async def _gone(request: Request, events: asyncio.Queue[Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    events.put_nowait("cancelled")


async def _chained(first: bytes, others: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with aclosing(others):
        yield first
        async for piece in others:
            yield piece


async def _pieces(
    server: "Server", work: Work, asked: dialects.Asked, events: asyncio.Queue[Any], reply: ChatReply | ResponseReply
) -> AsyncGenerator[bytes, None]:
    """What is sent, from the answer's first token on; the last piece is the whole reply, where it is not streamed."""
    saying, texts = Saying(server.model, asked.stops, asked.tools, asked.parallel), list[str]()

    def encoded(some: list[dict[str, Any]]) -> bytes:
        return b"".join(map(reply.encoded, some))

    try:
        event = await events.get()
        _raise(event)
        yield encoded(reply.opened())
        while isinstance(event, int):
            if text := await asyncio.to_thread(saying.take, event):
                texts.append(text)
                yield encoded(reply.said(text)) if asked.stream else b""
            event = "stop" if saying.stopped else await events.get()
        if not asked.stream:
            _raise(event)
        elif isinstance(event, Exception):
            yield encoded(reply.failed({**failure(event)[1], "type": "server_error"})) + reply.last
            return
        text, calls = saying.rest()
        texts.append(text)
        end = "".join(texts), calls, event, server.usage(work)
        if asked.stream:
            yield (encoded(reply.said(text)) if text else b"") + encoded(reply.closed(*end)) + reply.last
        else:
            yield json.dumps(reply.whole(*end)).encode()
    finally:
        server.engine.cancel(work)


def _raise(event: Any) -> None:
    if event == "cancelled":
        raise ClientDisconnect
    if isinstance(event, ContextBudgetError) or hasattr(event, "status"):
        raise event
    if isinstance(event, Exception):  # the request was sound
        raise _Refused(500, f"{type(event).__name__}: {event}")
