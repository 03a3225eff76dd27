"""Replies: an answer as OpenAI's clients read it, whole or in events, of chat completions and of responses."""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from swarmkv_lab.serve.asked import Asked

Calls = Sequence[tuple[str, str]]
Event = dict[str, Any]


class ChatReply:
    """Of /v1/chat/completions. reason: stop or length."""

    last = b"data: [DONE]\n\n"

    def __init__(self, asked: Asked, model: str) -> None:
        self._asked, self._id = asked, f"chatcmpl-{secrets.token_hex(12)}"
        self._about = {"created": int(time.time()), "model": model, "system_fingerprint": "swarmkv-lab"}

    def encoded(self, event: Event) -> bytes:
        """An event as the stream has it."""
        return f"data: {json.dumps(event)}\n\n".encode()

    def opened(self) -> list[Event]:
        """What comes before an answer's first text."""
        return [self._chunk({"role": "assistant", "content": ""})]

    def said(self, text: str) -> list[Event]:
        """A piece of it."""
        return [self._chunk({"content": text})]

    def closed(self, text: str, calls: Calls, reason: str, usage: Mapping[str, Any]) -> list[Event]:
        """What comes after its last one."""
        events = [self._chunk({"tool_calls": [{"index": i, **call}]}) for i, call in enumerate(self._calls(calls))]
        events.append(self._chunk({}, "tool_calls" if calls else reason))
        return events + ([self._object("chat.completion.chunk", [], usage)] if self._asked.with_usage else [])

    def whole(self, text: str, calls: Calls, reason: str, usage: Mapping[str, Any]) -> Event:
        """The reply in one piece."""
        message: Event = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        message |= {"tool_calls": self._calls(calls)} if calls else {}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls" if calls else reason}
        return self._object("chat.completion", [choice], usage)

    def failed(self, error: Mapping[str, Any]) -> list[Event]:
        """The end of a stream that cannot go on."""
        return [{"error": error}]

    def _calls(self, calls: Calls) -> list[Event]:
        return [
            {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": {"name": name, "arguments": given}}
            for name, given in calls
        ]

    def _chunk(self, delta: Event, reason: str | None = None) -> Event:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._object("chat.completion.chunk", [choice], None)

    def _object(self, kind: str, choices: list[Event], usage: Mapping[str, Any] | None) -> Event:
        return {"id": self._id, "object": kind, "choices": choices, "usage": usage} | self._about


class ResponseReply:
    """Of /v1/responses."""

    last = b""

    def __init__(self, asked: Asked, model: str) -> None:
        body = asked.body
        asks = {name: body.get(name) for name in ("instructions", "max_output_tokens", "temperature", "top_p", "user")}
        self._about = asks | {
            "id": f"resp_{secrets.token_hex(12)}", "object": "response", "created_at": int(time.time()), "model": model,
            "parallel_tool_calls": asked.parallel, "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [], "text": body.get("text") or {"format": {"type": "text"}}, "store": False,
            "metadata": body.get("metadata") or {}, "previous_response_id": None, "truncation": "disabled",
        }  # fmt: skip
        self._message, self._numbers, self._opened = f"msg_{secrets.token_hex(12)}", 0, False

    def encoded(self, event: Event) -> bytes:
        """An event as the stream has it."""
        return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()

    def opened(self) -> list[Event]:
        """What comes before an answer's first text."""
        begun = self._response("in_progress", [], None)
        return [self._event("response.created", response=begun), self._event("response.in_progress", response=begun)]

    def said(self, text: str) -> list[Event]:
        """A piece of it."""
        events = []
        if not self._opened:
            self._opened = True
            item, part = self._item("", "in_progress") | {"content": []}, self._part("")
            events.append(self._event("response.output_item.added", output_index=0, item=item))
            events.append(self._event("response.content_part.added", **self._at, part=part))
        return [*events, self._event("response.output_text.delta", **self._at, delta=text, logprobs=[])]

    def closed(self, text: str, calls: Calls, reason: str, usage: Mapping[str, Any]) -> list[Event]:
        """What comes after its last one."""
        events, response = [], self.whole(text, calls, reason, usage)
        for index, item in enumerate(response["output"]):
            if item["type"] == "message":
                events += [] if self._opened else self.said("")
                events.append(self._event("response.output_text.done", **self._at, text=text, logprobs=[]))
                events.append(self._event("response.content_part.done", **self._at, part=self._part(text)))
            else:
                at = {"output_index": index, "item_id": item["id"]}
                begun = item | {"arguments": "", "status": "in_progress"}
                events.append(self._event("response.output_item.added", output_index=index, item=begun))
                given = item["arguments"]
                events.append(self._event("response.function_call_arguments.delta", **at, delta=given))
                done = {"arguments": given, "name": item["name"]}
                events.append(self._event("response.function_call_arguments.done", **at, **done))
            events.append(self._event("response.output_item.done", output_index=index, item=item))
        return [*events, self._event(f"response.{response['status']}", response=response)]

    def whole(self, text: str, calls: Calls, reason: str, usage: Mapping[str, Any]) -> Event:
        """The reply in one piece."""
        status = "incomplete" if reason == "length" else "completed"
        output = [self._item(text, status)] if text or not calls or self._opened else []
        for name, given in calls:
            ids = {"id": f"fc_{secrets.token_hex(12)}", "call_id": f"call_{secrets.token_hex(12)}"}
            output.append(ids | {"type": "function_call", "name": name, "arguments": given, "status": "completed"})
        counted = {
            "input_tokens": usage["prompt_tokens"], "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }  # fmt: skip
        return self._response(status, output, counted)

    def failed(self, error: Mapping[str, Any]) -> list[Event]:
        """The end of a stream that cannot go on."""
        response = self._response("failed", [], None) | {"error": {"code": "server_error", "message": error["message"]}}
        return [self._event("response.failed", response=response)]

    @property
    def _at(self) -> Event:
        return {"output_index": 0, "item_id": self._message, "content_index": 0}

    def _part(self, text: str) -> Event:
        return {"type": "output_text", "text": text, "annotations": []}

    def _item(self, text: str, status: str) -> Event:
        content = [self._part(text)]
        return {"id": self._message, "type": "message", "role": "assistant", "status": status, "content": content}

    def _response(self, status: str, output: list[Event], usage: Any) -> Event:
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return self._about | {
            "status": status, "output": output, "usage": usage, "error": None, "incomplete_details": cut,
        }  # fmt: skip

    def _event(self, kind: str, **more: Any) -> Event:
        self._numbers += 1
        return {"type": kind, "sequence_number": self._numbers - 1} | more
