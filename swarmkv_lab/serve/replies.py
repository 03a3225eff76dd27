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
_ECHOED: Event = dict.fromkeys(("instructions", "max_output_tokens", "temperature", "top_p", "user"))
_ECHOED |= {"metadata": {}, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": []}


class ChatReply:
    """Of /v1/chat/completions: what a stream is sent, bytes, for all that it is told; ``whole`` once it is closed."""

    def __init__(self, asked: Asked, model: Model, sampler: Sampler) -> None:
        self.asked, self._model, self._sampler = asked, model, sampler
        self.saying = Saying(model, asked.stops, asked.tools, asked.parallel)
        self._text, self._calls, self._reason = "", list[tuple[str, str]](), ""
        self._logprobs, self._n_shown = list[Event](), 0
        self._usage: Event | None = None
        self._id, self._created = secrets.token_hex(12), int(time.time())

    def open(self) -> bytes:
        """Before the first token."""
        return self._chunk({"role": "assistant", "content": ""})

    def take(self, token: int) -> bytes:
        """One more token."""
        if isinstance(self._sampler, Noted):
            own, *likely = [
                {"token": text, "logprob": value, "bytes": [*text.encode()]}
                for one, value in self._sampler.noted.popleft()
                for text in [self._model.detokenize([one], special=True)]
            ]
            self._logprobs.append(own | {"top_logprobs": likely})
        return self._say(self.saying.take(token))

    def close(self, reason: str, usage: Event) -> bytes:
        """The end: stop or length."""
        text, self._calls = self.saying.rest()
        said, self._reason, self._usage = self._say(text), "tool_calls" if self._calls else reason, usage
        return said + self._closed()

    def fail(self, message: str) -> bytes:
        """The end of a stream that cannot go on."""
        error = {"message": message, "type": "server_error", "param": None, "code": None}
        return _sent({"error": error}) + b"data: [DONE]\n\n"

    def whole(self) -> Event:
        """The reply in one piece."""
        message: Event = {"role": "assistant", "content": self._text or (None if self._calls else ""), "refusal": None}
        message |= {"tool_calls": self._called()} if self._calls else {}
        return self._object("chat.completion", [self._choice({"message": message}, self._logprobs, self._reason)])

    def _say(self, text: str) -> bytes:
        if not text:
            return b""
        begin, self._n_shown = self._n_shown, len(self._logprobs)
        said = self._said(text, self._logprobs[begin:])
        self._text += text
        return said

    def _said(self, text: str, logprobs: Sequence[Event]) -> bytes:
        return self._chunk({"content": text}, logprobs)

    def _closed(self) -> bytes:
        called = [self._chunk({"tool_calls": [{"index": i} | call]}) for i, call in enumerate(self._called())]
        last = [self._chunk({}, reason=self._reason)]
        last += [_sent(self._object("chat.completion.chunk", []))] if self.asked.with_usage else []
        return b"".join([*called, *last, b"data: [DONE]\n\n"])

    def _called(self) -> list[Event]:
        functions = [{"name": name, "arguments": given} for name, given in self._calls]
        return [{"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": one} for one in functions]

    def _chunk(self, delta: Event, logprobs: Sequence[Event] = (), reason: str | None = None) -> bytes:
        chunk = self._object("chat.completion.chunk", [self._choice({"delta": delta}, logprobs, reason)])
        return _sent(chunk | {"usage": None})

    def _choice(self, said: Event, logprobs: Sequence[Event], reason: str | None) -> Event:
        shown = {"content": logprobs, "refusal": None} if logprobs else None
        return {"index": 0, **said, "logprobs": shown, "finish_reason": reason}

    def _object(self, kind: str, choices: list[Event]) -> Event:
        about = {"id": f"chatcmpl-{self._id}", "object": kind, "created": self._created, "model": self._model.name}
        return about | {"choices": choices, "usage": self._usage}


class ResponseReply(ChatReply):
    """Of /v1/responses."""

    _n_events = 0

    def open(self) -> bytes:
        """Before the first token."""
        begun = self._response("in_progress", [])
        return self._event("created", response=begun) + self._event("in_progress", response=begun)

    def fail(self, message: str) -> bytes:
        """The end of a stream that cannot go on."""
        failed = {"error": {"code": "server_error", "message": message}}
        return self._event("failed", response=self._response("failed", []) | failed)

    def whole(self) -> Event:
        """The reply in one piece."""
        status = "incomplete" if self._reason == "length" else "completed"
        output = [self._message(status, [self._part()])] if self._text or not self._calls else []
        for name, given in self._calls:
            ids = {"id": f"fc_{secrets.token_hex(12)}", "call_id": f"call_{secrets.token_hex(12)}"}
            output.append(ids | {"type": "function_call", "name": name, "arguments": given, "status": "completed"})
        return self._response(status, output)

    def _said(self, text: str, logprobs: Sequence[Event]) -> bytes:
        begun = b"" if self._text else self._begun()
        return begun + self._event("output_text.delta", **self._at, delta=text, logprobs=logprobs)

    def _begun(self) -> bytes:
        added = self._event("output_item.added", output_index=0, item=self._message("in_progress", []))
        return added + self._event("content_part.added", **self._at, part=self._part() | {"logprobs": []})

    def _closed(self) -> bytes:
        response, sent = self.whole(), [] if self._text or self._calls else [self._begun()]
        for index, item in enumerate(response["output"]):
            if item["type"] == "message":
                (part,) = item["content"]
                done = {"text": part["text"], "logprobs": part["logprobs"]}
                sent += [self._event("output_text.done", **self._at, **done)]
                sent += [self._event("content_part.done", **self._at, part=part)]
            else:
                at, given = {"output_index": index, "item_id": item["id"]}, item["arguments"]
                begun = item | {"arguments": "", "status": "in_progress"}
                sent += [self._event("output_item.added", output_index=index, item=begun)]
                sent += [self._event("function_call_arguments.delta", **at, delta=given)]
                sent += [self._event("function_call_arguments.done", **at, arguments=given, name=item["name"])]
            sent += [self._event("output_item.done", output_index=index, item=item)]
        return b"".join([*sent, self._event(response["status"], response=response)])

    @property
    def _at(self) -> Event:
        return {"output_index": 0, "item_id": f"msg_{self._id}", "content_index": 0}

    def _part(self) -> Event:
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": self._logprobs}

    def _message(self, status: str, content: list[Event]) -> Event:
        about = {"id": f"msg_{self._id}", "type": "message", "role": "assistant"}
        return about | {"status": status, "content": content}

    def _response(self, status: str, output: list[Event]) -> Event:
        body, usage = self.asked.body, self._usage
        echoed = {name: default if body.get(name) is None else body[name] for name, default in _ECHOED.items()}
        return echoed | {
            "id": f"resp_{self._id}", "object": "response", "created_at": self._created, "model": self._model.name,
            "status": status, "output": output, "error": None, "store": False, "truncation": "disabled",
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "parallel_tool_calls": self.asked.parallel, "previous_response_id": None,
            "usage": usage and {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cache_write_tokens": 0} | usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        }  # fmt: skip

    def _event(self, kind: str, **more: Any) -> bytes:
        self._n_events += 1
        return _sent({"type": f"response.{kind}", "sequence_number": self._n_events - 1} | more)


def _sent(event: Event) -> bytes:
    """An event as a stream has it."""
    named = f"event: {event['type']}\n" if "type" in event else ""
    return f"{named}data: {json.dumps(event)}\n\n".encode()
