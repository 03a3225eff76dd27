"""Asked: what a request of the OpenAI API asks for, checked; both dialects in one form."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from swarmkv_lab.errors import INT32_MAX, SwarmKVError, whole_number
from swarmkv_lab.llama.conversation import Said
from swarmkv_lab.llama.grammar import grammar
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import Constrained, Sampler, Sampling

_TEXT = ("text", "input_text", "output_text", "refusal")  # kinds of parts, by which their text is named too
_UNKNOWN = ("logprobs", "logit_bias", "frequency_penalty", "presence_penalty", "previous_response_id", "conversation")


@dataclass
class Asked:
    """A conversation, and how it is to be answered."""

    said: list[Said]
    tools: list[Any]
    """in the form of chat completions; [] where none is to be called"""
    grammar: str | None
    sampling: Sampling
    max_tokens: int
    stops: tuple[str, ...]
    parallel: bool
    stream: bool
    with_usage: bool
    body: Mapping[str, Any] = field(repr=False)

    def sampler(self, model: Model) -> Sampler:
        """A sampler of its own."""
        return Constrained(model, self.grammar, self.sampling) if self.grammar else Sampler(self.sampling)


def chat(body: Any) -> Asked:
    """Of /v1/chat/completions. Raises SwarmKVError for what is none, or is not known here."""
    _is(body, Mapping, "the body")
    for name in _UNKNOWN:
        if body.get(name):
            raise SwarmKVError(f"{name} is not known here: leave it out")
    whole_number("n", _get(body, "n", int, 1), 1, 1)
    messages = _get(body, "messages", list, [])
    if not messages:
        raise SwarmKVError("messages: there is none")
    tools, choice = _get(body, "tools", list, []), body.get("tool_choice") or "auto"
    functions = {tool["function"]["name"]: tool["function"] for tool in map(_tool, tools)}
    if isinstance(choice, Mapping):
        chosen = _get(_get(choice, "function", Mapping, choice), "name", str, "")
        if chosen not in functions:
            raise SwarmKVError(f"tool_choice: there is no tool {chosen[:80]!r}")
        forced = {chosen: functions[chosen]}
    elif choice not in ("auto", "none", "required") or (choice == "required" and not tools):
        raise SwarmKVError(f"tool_choice={choice!r:.80}: it is auto, none, required (with tools) or one tool")
    else:
        forced = functions if choice == "required" else {}
    parallel, schema = (
        _get(body, "parallel_tool_calls", bool, True),
        _schema(_get(body, "response_format", Mapping, {})),
    )
    callable_ = {} if choice == "none" else functions
    forms = {name: _get(one, "parameters", Mapping, {}) for name, one in (forced or callable_).items()}
    rules = grammar(None if forced else schema, forms, parallel) if forced or schema is not None else None
    stop, temperature = body.get("stop") or [], _get(body, "temperature", (int, float), 0)
    stops = tuple(_is(one, str, "stop") for one in ([stop] if isinstance(stop, str) else _is(stop, list, "stop")))
    if not 0 <= temperature <= 2 or len(stops) > 16:
        raise SwarmKVError(f"temperature={temperature}: it is 0 to 2; stop has {len(stops)} texts: at most 16")
    seed = _get(body, "seed", int, secrets.randbits(31)) % INT32_MAX
    most = _get(body, "max_completion_tokens", int, _get(body, "max_tokens", int, INT32_MAX))
    return Asked(
        [_said(message) for message in messages],
        tools if callable_ else [],
        rules,
        Sampling(temperature if temperature >= 1e-4 else 0, 0, _get(body, "top_p", (int, float), 1.0), 0.0, seed),
        whole_number("max_tokens", most, 1),
        tuple(filter(None, stops)),
        parallel,
        _get(body, "stream", bool, False),
        bool(_get(body, "stream_options", Mapping, {}).get("include_usage")),
        body,
    )


def responses(body: Any) -> Asked:
    """Of /v1/responses, as chat completions ask it."""
    given = _is(body, Mapping, "the body").get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else _is(given, list, "input")
    messages: list[Any] = []
    if instructions := _get(body, "instructions", str, ""):
        messages.append({"role": "system", "content": instructions})
    for item in items:
        kind = _is(item, Mapping, "an item of input").get("type", "message")
        if kind == "function_call":
            call = {"function": {"name": item.get("name"), "arguments": item.get("arguments")}}
            if not messages or messages[-1].get("role") != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1] = {**messages[-1], "tool_calls": [*messages[-1].get("tool_calls", []), call]}
        elif kind == "function_call_output":
            messages.append({"role": "tool", "content": item.get("output")})
        elif kind == "message":
            messages.append(item)
        elif kind != "reasoning":
            raise SwarmKVError(f"input: an item of type {kind!r:.80} is not known here")
    form = _get(_get(body, "text", Mapping, {}), "format", Mapping, {})
    known = (
        "parallel_tool_calls",
        "stream",
        "temperature",
        "top_p",
        "tool_choice",
        "previous_response_id",
        "conversation",
    )
    asked = {name: body[name] for name in known if name in body}
    asked |= {"messages": messages, "max_tokens": body.get("max_output_tokens")}
    tools = _get(body, "tools", list, [])
    asked["tools"] = [{"type": _is(tool, Mapping, "a tool").get("type"), "function": tool} for tool in tools]
    asked["response_format"] = {"type": form.get("type", "text"), "json_schema": form}
    found = chat(asked)
    found.body = body
    return found


def _is(value: Any, kind: Any, name: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SwarmKVError(f"{name}: it is of the wrong type ({type(value).__name__})")
    return value


def _get(body: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
    return default if body.get(name) is None else _is(body[name], kind, name)


def _tool(tool: Any) -> Any:
    function = _get(_is(tool, Mapping, "a tool"), "function", Mapping, {})
    if tool.get("type") != "function" or not _get(function, "name", str, ""):
        raise SwarmKVError(f"a tool of type {tool.get('type')!r:.80}: functions with names are known here")
    return tool


def _schema(form: Mapping[str, Any]) -> Any:
    kind = form.get("type", "text")
    if kind == "json_schema":
        return _get(_get(form, "json_schema", Mapping, {}), "schema", Mapping, {})
    if kind not in ("text", "json_object"):
        raise SwarmKVError(f"response_format: {kind!r:.80} is not text, json_object or json_schema")
    return {"type": "object"} if kind == "json_object" else None


def _said(message: Any) -> Said:
    role = _get(_is(message, Mapping, "a message"), "role", str, "")
    if role not in ("system", "developer", "user", "assistant", "tool"):
        raise SwarmKVError(f"a message's role is system, developer, user, assistant or tool, and not {role[:80]!r}")
    content, texts = message.get("content"), list[str]()
    for part in [content] if isinstance(content, str) else _is(content or [], list, "content"):
        part = {"type": "text", "text": part} if isinstance(part, str) else _is(part, Mapping, "a part of content")
        if (kind := part.get("type")) not in _TEXT:
            raise SwarmKVError(f"content of type {kind!r:.80}: this model reads text")
        texts.append(_is(part.get("refusal" if kind == "refusal" else "text"), str, "text"))
    calls = []
    for call in _get(message, "tool_calls", list, []):
        function = _get(_is(call, Mapping, "a call"), "function", Mapping, {})
        try:
            arguments = json.loads(_get(function, "arguments", str, "") or "{}")
        except (ValueError, RecursionError) as error:
            raise SwarmKVError("the arguments of a call are not JSON") from error
        calls.append(
            (_get(function, "name", str, ""), json.dumps(_is(arguments, Mapping, "arguments"), ensure_ascii=False))
        )
    return Said("system" if role == "developer" else role, tuple(texts), tuple(calls))
