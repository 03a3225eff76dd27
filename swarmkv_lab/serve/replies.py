"""Replies: an answer as OpenAI's clients read it, whole and in events as it grows; of both dialects."""

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from swarmkv_lab.llama.conversation import Saying
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import Noted, Sampler
from swarmkv_lab.serve.asked import Asked

Event = dict[str, Any]


class ChatReply:
    """Of /v1/chat/completions. What it is told comes back as bytes for a stream; ``whole`` is there at the end."""

    _last = b"data: [DONE]\n\n"

    def __init__(self, asked: Asked, model: Model, sampler: Sampler) -> None:
        self.asked, self._model, self._sampler = asked, model, sampler
        self._saying = Saying(model, asked.stops, asked.tools, asked.parallel)
        self._text, self._calls, self._reason = "", list[tuple[str, str]](), ""
        self._logprobs, self._n_shown = list[Event](), 0
        self._usage: Event | None = None
        self._id, self._created = secrets.token_hex(12), int(time.time())

    def open(self) -> bytes:
        """What comes before an answer's first text."""
        return _encoded(self._opened())

    def take(self, token: int) -> bytes:
        """One more token, and what can be said after it."""
        if isinstance(self._sampler, Noted):
            own, *likely = [
                {"token": text, "logprob": value, "bytes": [*text.encode()]}
                for one, value in self._sampler.noted.popleft()
                for text in [self._model.detokenize([one], special=True)]
            ]
            self._logprobs.append(own | {"top_logprobs": likely})
        return self._say(self._saying.take(token))

    @property
    def stopped(self) -> bool:
        """Whether a text came that was to end it."""
        return self._saying.stopped

    def close(self, reason: str, usage: Event) -> bytes:
        """The end. reason: stop or length."""
        text, self._calls = self._saying.rest()
        said, self._reason, self._usage = self._say(text), reason, usage
        return said + _encoded(self._closed()) + self._last

    def fail(self, error: Event) -> bytes:
        """The end of a stream that cannot go on."""
        return _encoded(self._failed({**error, "type": "server_error"})) + self._last

    def whole(self) -> Event:
        """The reply in one piece."""
        message: Event = {"role": "assistant", "content": self._text or (None if self._calls else ""), "refusal": None}
        message |= {"tool_calls": self._called()} if self._calls else {}
        return self._object("chat.completion", {"message": message}, self._logprobs, self._finish)

    def _say(self, text: str) -> bytes:
        if not text:
            return b""
        begin, self._n_shown = self._n_shown, len(self._logprobs)
        self._text, said = self._text + text, self._said(text, self._logprobs[begin:])
        return _encoded(said)

    @property
    def _finish(self) -> str:
        return "tool_calls" if self._calls else self._reason

    def _opened(self) -> list[Event]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def _said(self, text: str, logprobs: list[Event]) -> list[Event]:
        return [self._chunk({"content": text}, logprobs)]

    def _closed(self) -> list[Event]:
        events = [self._chunk({"tool_calls": [{"index": i} | call]}) for i, call in enumerate(self._called())]
        events.append(self._chunk({}, finish=self._finish))
        return events + ([self._chunk(None) | {"usage": self._usage}] if self.asked.with_usage else [])

    def _failed(self, error: Event) -> list[Event]:
        return [{"error": error}]

    def _called(self) -> list[Event]:
        return [
            {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": {"name": name, "arguments": given}}
            for name, given in self._calls
        ]

    def _chunk(self, delta: Event | None, logprobs: Sequence[Event] = (), finish: str | None = None) -> Event:
        return self._object("chat.completion.chunk", None if delta is None else {"delta": delta}, logprobs, finish)

    def _object(self, kind: str, said: Event | None, logprobs: Sequence[Event], finish: str | None) -> Event:
        shown = {"content": logprobs, "refusal": None} if logprobs else None
        choices = [] if said is None else [{"index": 0, **said, "logprobs": shown, "finish_reason": finish}]
        about = {"id": f"chatcmpl-{self._id}", "object": kind, "created": self._created, "model": self._model.name}
        return about | {"choices": choices, "usage": None if said and "delta" in said else self._usage}


class ResponseReply(ChatReply):
    """Of /v1/responses."""

    _last = b""
    _n_events = 0

    def whole(self) -> Event:
        """The reply in one piece."""
        status = "incomplete" if self._reason == "length" else "completed"
        output = [self._message(status, self._part())] if self._text or not self._calls else []
        for name, given in self._calls:
            ids = {"id": f"fc_{secrets.token_hex(12)}", "call_id": f"call_{secrets.token_hex(12)}"}
            output.append(ids | {"type": "function_call", "name": name, "arguments": given, "status": "completed"})
        return self._response(status, output)

    def _opened(self) -> list[Event]:
        begun = self._response("in_progress", [])
        return [self._event("created", response=begun), self._event("in_progress", response=begun)]

    def _said(self, text: str, logprobs: Sequence[Event]) -> list[Event]:
        begun = [] if self._text else self._begun()
        return [*begun, self._event("output_text.delta", **self._at, delta=text, logprobs=logprobs)]

    def _begun(self) -> list[Event]:
        added = self._event("output_item.added", output_index=0, item=self._message("in_progress"))
        return [added, self._event("content_part.added", **self._at, part=self._part() | {"text": "", "logprobs": []})]

    def _closed(self) -> list[Event]:
        response = self.whole()
        events = [] if self._text or self._calls else self._begun()
        for index, item in enumerate(response["output"]):
            if item["type"] == "message":
                (part,) = item["content"]
                done = {"text": part["text"], "logprobs": part["logprobs"]}
                events.append(self._event("output_text.done", **self._at, **done))
                events.append(self._event("content_part.done", **self._at, part=part))
            else:
                at, given = {"output_index": index, "item_id": item["id"]}, item["arguments"]
                begun = item | {"arguments": "", "status": "in_progress"}
                events.append(self._event("output_item.added", output_index=index, item=begun))
                events.append(self._event("function_call_arguments.delta", **at, delta=given))
                events.append(self._event("function_call_arguments.done", **at, arguments=given, name=item["name"]))
            events.append(self._event("output_item.done", output_index=index, item=item))
        return [*events, self._event(response["status"], response=response)]

    def _failed(self, error: Event) -> list[Event]:
        failed = {"error": {"code": "server_error", "message": error["message"]}}
        return [self._event("failed", response=self._response("failed", []) | failed)]

    @property
    def _at(self) -> Event:
        return {"output_index": 0, "item_id": f"msg_{self._id}", "content_index": 0}

    def _part(self) -> Event:
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": self._logprobs}

    def _message(self, status: str, *content: Event) -> Event:
        item = {"id": f"msg_{self._id}", "type": "message", "role": "assistant", "status": status}
        return item | {"content": content}

    def _response(self, status: str, output: list[Event]) -> Event:
        body = self.asked.body
        asked = {name: body.get(name) for name in ("instructions", "max_output_tokens", "temperature", "top_p", "user")}
        return asked | {
            "id": f"resp_{self._id}", "object": "response", "created_at": self._created, "model": self._model.name,
            "status": status, "output": output, "error": None, "store": False, "truncation": "disabled",
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "parallel_tool_calls": self.asked.parallel, "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [], "text": body.get("text") or {"format": {"type": "text"}},
            "metadata": body.get("metadata") or {}, "previous_response_id": None, "usage": self._used(),
        }  # fmt: skip

    def _used(self) -> Event | None:
        return self._usage and {
            "input_tokens": self._usage["prompt_tokens"], "input_tokens_details": self._usage["prompt_tokens_details"],
            "output_tokens": self._usage["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._usage["total_tokens"],
        }  # fmt: skip

    def _event(self, kind: str, **more: Any) -> Event:
        self._n_events += 1
        return {"type": f"response.{kind}", "sequence_number": self._n_events - 1} | more


def _encoded(events: list[Event]) -> bytes:
    """Events as a stream has them."""
    named = ((f"event: {event['type']}\n" if "type" in event else "", json.dumps(event)) for event in events)
    return "".join(f"{name}data: {data}\n\n" for name, data in named).encode()
