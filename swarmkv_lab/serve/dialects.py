"""Dialects of the OpenAI API: what a request asks for, checked, and its reply, whole and in events as it grows."""

import json
import secrets
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from swarmkv_lab.errors import INT32_MAX, SwarmKVError, not_one_of, whole_number
from swarmkv_lab.llama.conversation import AnswerText, Message
from swarmkv_lab.llama.grammar import Constrained, grammar
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import Sampler, Sampling

_ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {"developer": "system"}
_TEXT = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""kinds of parts of a message, and where each has its text"""
_PENALTIES = ("frequency_penalty", "presence_penalty", "logit_bias")
_UNKNOWN = (*_PENALTIES, "logprobs", "background", "previous_response_id", "conversation")
Event = dict[str, Any]
_ECHOED: Event = dict.fromkeys(("instructions", "max_output_tokens", "temperature", "top_p", "user"))
_ECHOED |= {"metadata": {}, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": []}


class Chat:
    """A request of /v1/chat/completions, and the reply: bytes of a stream for all that it is told, and ``whole``.

    Raises SwarmKVError for what is no such request, or asks for what is not known here.
    """

    def __init__(self, model: Model, body: Any) -> None:
        get = partial(_get, _is(body, Mapping, "the body"))
        if unknown := [name for name in _UNKNOWN if body.get(name)]:
            raise SwarmKVError(f"{', '.join(unknown)}: not known here, leave it out")
        whole_number("n", get("n", int, 1), 1, 1)
        if not (messages := get("messages", list, [])):
            raise SwarmKVError("messages: there is none")
        tools, choice = get("tools", list, []), body.get("tool_choice") or "auto"
        self._parallel, forms = get("parallel_tool_calls", bool, True), dict(map(_function, tools))
        name = _get(_get(choice, "function", Mapping, choice), "name", str, "") if isinstance(choice, Mapping) else ""
        if name not in forms and choice not in ("auto", "none") and not (choice == "required" and forms):
            raise SwarmKVError(f"tool_choice={choice!r:.80}: it is auto, none or, with tools, required or one of them")
        forms, must = {name: forms[name]} if name else {} if choice == "none" else forms, name or choice == "required"
        self._parallel &= not name
        schema = None if must else _schema(get("response_format", Mapping, {}))
        stop, temperature = body.get("stop") or [], get("temperature", (int, float), 0)
        stops = [_is(one, str, "stop") for one in ([stop] if isinstance(stop, str) else _is(stop, list, "stop"))]
        if not 0 <= temperature <= 2 or len(stops) > 16:
            raise SwarmKVError(f"temperature={temperature}: it is 0 to 2; stop has {len(stops)} texts: at most 16")
        seed, top_p = get("seed", int, secrets.randbits(31)) % INT32_MAX, get("top_p", (int, float), 1.0)
        how = Sampling(temperature if temperature >= 1e-4 else 0, top_k=0, top_p=top_p, min_p=0.0, seed=seed)
        most = get("max_completion_tokens", int, get("max_tokens", int, INT32_MAX))
        self.max_tokens, self.stream = whole_number("max_tokens", most, 1), get("stream", bool, False)
        self._with_usage = bool(get("stream_options", Mapping, {}).get("include_usage"))
        self.messages, self.tools = [_parsed(message) for message in messages], tools if forms else []
        self.sampler = Sampler(how)
        if must or schema is not None:
            self.sampler = Constrained(model, grammar(schema, forms, self._parallel), how)
        stops = [] if must else [*filter(None, stops)]  # a call has no text
        self.answer = AnswerText(model, stops, self.tools, self._parallel)
        self._model, self._text, self._calls, self._reason = model, "", list[tuple[str, str]](), ""
        self._usage: Event | None = None
        self._id, self._created = secrets.token_hex(12), int(time.time())

    def open(self) -> bytes:
        """Before the first token."""
        return self._chunk({"role": "assistant", "content": ""})

    def add(self, token: int) -> bytes:
        """One more token."""
        return self._more(self.answer.add(token))

    def close(self, reason: str, usage: Event) -> bytes:
        """The end: stop or length."""
        text, self._calls = self.answer.rest()
        sent, self._reason, self._usage = self._more(text), "tool_calls" if self._calls else reason, usage
        return sent + self._closed()

    def fail(self, message: str) -> bytes:
        """The end of a stream that cannot go on."""
        error = {"message": message, "type": "server_error", "param": None, "code": None}
        return _sent({"error": error}) + b"data: [DONE]\n\n"

    def whole(self) -> Event:
        """The reply in one piece."""
        message: Event = {"role": "assistant", "content": self._text or (None if self._calls else ""), "refusal": None}
        message |= {"tool_calls": self._called()} if self._calls else {}
        return self._object({"message": message}, self._reason) | {"usage": self._usage}

    def _more(self, text: str) -> bytes:
        if not text:
            return b""
        sent = self._delta(text)
        self._text += text
        return sent

    def _delta(self, text: str) -> bytes:
        return self._chunk({"content": text})

    def _closed(self) -> bytes:
        sent = [self._chunk({"tool_calls": [{"index": i} | call]}) for i, call in enumerate(self._called())]
        sent.append(self._chunk({}, self._reason))
        if self._with_usage:
            sent.append(_sent(self._object({"delta": {}}) | {"choices": [], "usage": self._usage}))
        return b"".join([*sent, b"data: [DONE]\n\n"])

    def _called(self) -> list[Event]:
        functions = [{"name": name, "arguments": given} for name, given in self._calls]
        return [{"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": one} for one in functions]

    def _chunk(self, delta: Event, reason: str | None = None) -> bytes:
        return _sent(self._object({"delta": delta}, reason))

    def _object(self, part: Event, reason: str | None = None) -> Event:
        return {
            "id": f"chatcmpl-{self._id}", "object": "chat.completion.chunk" if "delta" in part else "chat.completion",
            "created": self._created, "model": self._model.name, "usage": None,
            "choices": [{"index": 0, **part, "logprobs": None, "finish_reason": reason}],
        }  # fmt: skip


class Responses(Chat):
    """Of /v1/responses, which is asked as chat completions are."""

    def __init__(self, model: Model, body: Any) -> None:
        get = partial(_get, _is(body, Mapping, "the body"))
        messages: list[Any] = []
        if instructions := get("instructions", str, ""):
            messages.append({"role": "system", "content": instructions})
        given = body.get("input")
        for item in [{"role": "user", "content": given}] if isinstance(given, str) else _is(given, list, "input"):
            kind = _is(item, Mapping, "an item of input").get("type", "message")
            if kind == "function_call":
                if not messages or messages[-1].get("role") != "assistant":
                    messages.append({"role": "assistant"})
                calls = [*_get(messages[-1], "tool_calls", list, []), {"function": item}]
                messages[-1] = {**messages[-1], "tool_calls": calls}
            elif kind == "function_call_output":
                messages.append({"role": "tool", "content": item.get("output")})
            elif kind == "message":
                messages.append(item)
            elif kind != "reasoning":
                raise SwarmKVError(f"input: an item of type {kind!r:.80} is not known here")
        form = _get(get("text", Mapping, {}), "format", Mapping, {})
        asked = {  # the rest has the same names
            **body,
            "messages": messages,
            "max_tokens": body.get("max_output_tokens"),
            "tools": [{**_is(tool, Mapping, "a tool"), "function": tool} for tool in get("tools", list, [])],
            "response_format": {"type": form.get("type"), "json_schema": form},
            "logprobs": "message.output_text.logprobs" in get("include", list, []),
        }
        super().__init__(model, asked)
        self._body, self._n_events = body, 0
        self._at: Event = {"output_index": 0, "item_id": f"msg_{self._id}", "content_index": 0}

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
        output = [self._message(status)] if self._text or not self._calls else []
        for name, given in self._calls:
            ids = {"id": f"fc_{secrets.token_hex(12)}", "call_id": f"call_{secrets.token_hex(12)}"}
            output.append(ids | {"type": "function_call", "name": name, "arguments": given, "status": "completed"})
        return self._response(status, output)

    def _delta(self, text: str) -> bytes:
        begun = b"" if self._text else self._begun()
        return begun + self._event("output_text.delta", **self._at, delta=text, logprobs=[])

    def _begun(self) -> bytes:
        added = self._event("output_item.added", output_index=0, item=self._message("in_progress"))
        empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return added + self._event("content_part.added", **self._at, part=empty)

    def _closed(self) -> bytes:
        response, sent = self.whole(), [] if self._text or self._calls else [self._begun()]
        for index, item in enumerate(response["output"]):
            if item["type"] == "message":
                sent += [self._event("output_text.done", **self._at, text=self._text, logprobs=[])]
                sent += [self._event("content_part.done", **self._at, part=item["content"][0])]
            else:
                at, given = {"output_index": index, "item_id": item["id"]}, item["arguments"]
                begun = item | {"arguments": "", "status": "in_progress"}
                sent += [self._event("output_item.added", output_index=index, item=begun)]
                sent += [self._event("function_call_arguments.delta", **at, delta=given)]
                sent += [self._event("function_call_arguments.done", **at, arguments=given, name=item["name"])]
            sent += [self._event("output_item.done", output_index=index, item=item)]
        return b"".join([*sent, self._event(response["status"], response=response)])

    def _message(self, status: str) -> Event:
        part = {"type": "output_text", "text": self._text, "annotations": [], "logprobs": []}
        about = {"id": f"msg_{self._id}", "type": "message", "role": "assistant", "status": status}
        return about | {"content": [] if status == "in_progress" else [part]}

    def _response(self, status: str, output: list[Event]) -> Event:
        body, usage = self._body, self._usage
        echoed = {name: default if body.get(name) is None else body[name] for name, default in _ECHOED.items()}
        return echoed | {
            "id": f"resp_{self._id}", "object": "response", "created_at": self._created, "model": self._model.name,
            "status": status, "output": output, "error": None, "store": False, "truncation": "disabled",
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "parallel_tool_calls": self._parallel, "previous_response_id": None,
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


def _is(value: Any, kind: Any, name: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SwarmKVError(f"{name}: it is of the wrong type ({type(value).__name__})")
    return value


def _get(body: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
    return default if body.get(name) is None else _is(body[name], kind, name)


def _function(tool: Any) -> tuple[str, Mapping[str, Any]]:
    """A tool's name, and the schema of its arguments."""
    function = _get(_is(tool, Mapping, "a tool"), "function", Mapping, {})
    if tool.get("type") != "function" or not (name := _get(function, "name", str, "")):
        raise SwarmKVError(f"a tool of type {tool.get('type')!r:.80}: functions with names are known here")
    return name, _get(function, "parameters", Mapping, {})


def _schema(form: Mapping[str, Any]) -> Any:
    asked = _get(_get(form, "json_schema", Mapping, {}), "schema", Mapping, {})
    schemas = {"text": None, "json_object": {"type": "object"}, "json_schema": asked}
    if (kind := _get(form, "type", str, "text")) not in schemas:
        raise SwarmKVError(f"response_format {not_one_of(kind, schemas)}")
    return schemas[kind]


def _parsed(message: Any) -> Message:
    role, content = _get(_is(message, Mapping, "a message"), "role", str, ""), message.get("content") or []
    if role not in _ROLES:
        raise SwarmKVError(f"a message's role {not_one_of(role, _ROLES)}")
    texts, calls = [], []
    for part in [content] if isinstance(content, str) else _is(content, list, "content"):
        part = {"type": "text", "text": part} if isinstance(part, str) else _is(part, Mapping, "a part of content")
        if (kind := _get(part, "type", str, "")) not in _TEXT:
            raise SwarmKVError(f"content of type {kind!r:.80}: this model reads text")
        texts.append(_is(part.get(_TEXT[kind]), str, "text"))
    for call in _get(message, "tool_calls", list, []):
        function = _get(_is(call, Mapping, "a call"), "function", Mapping, {})
        try:
            arguments = _is(json.loads(_get(function, "arguments", str, "") or "{}"), Mapping, "arguments")
        except (ValueError, RecursionError) as error:
            raise SwarmKVError("the arguments of a call are not JSON") from error
        calls.append((_get(function, "name", str, ""), json.dumps(arguments, ensure_ascii=False)))
    return Message(_ROLES[role], tuple(texts), tuple(calls))
