"""Asked: what a request of the OpenAI API asks for, checked; both of its dialects in one form."""

import json
import secrets
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from swarmkv_lab.errors import INT32_MAX, SwarmKVError, not_one_of, whole_number
from swarmkv_lab.llama.conversation import Said
from swarmkv_lab.llama.grammar import grammar
from swarmkv_lab.llama.sampling import Sampling

_ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {"developer": "system"}
_TEXT = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""kinds of parts of a message, and where each has its text"""
_UNKNOWN = ("logit_bias", "frequency_penalty", "presence_penalty", "background", "previous_response_id", "conversation")
_ALIKE = ("parallel_tool_calls", "stream", "temperature", "top_p", "top_logprobs", "tool_choice", *_UNKNOWN)
"""what both dialects name alike"""


class Asked(NamedTuple):
    """A conversation, and how it is to be answered."""

    body: Mapping[str, Any]
    said: list[Said]
    tools: list[Any]
    """in the form of chat completions; [] where none is to be called"""
    grammar: str | None
    sampling: Sampling
    max_tokens: int
    stops: tuple[str, ...]
    parallel: bool
    logprobs: int | None
    """how many likely tokens to show beside each one, or None for no probabilities"""
    stream: bool
    with_usage: bool


def chat(body: Any) -> Asked:
    """Of /v1/chat/completions. Raises SwarmKVError for what is none, or is not known here."""
    get = partial(_get, _is(body, Mapping, "the body"))
    if unknown := [name for name in _UNKNOWN if body.get(name)]:
        raise SwarmKVError(f"{', '.join(unknown)}: not known here, leave it out")
    whole_number("n", get("n", int, 1), 1, 1)
    if not (messages := get("messages", list, [])):
        raise SwarmKVError("messages: there is none")
    tools, choice = get("tools", list, []), body.get("tool_choice") or "auto"
    parallel, forms = get("parallel_tool_calls", bool, True), dict(map(_function, tools))
    name = _get(_get(choice, "function", Mapping, choice), "name", str, "") if isinstance(choice, Mapping) else ""
    if name not in forms and choice not in ("auto", "none") and not (choice == "required" and forms):
        raise SwarmKVError(f"tool_choice={choice!r:.80}: it is auto, none or, where there are tools, required or one")
    forms, must = {name: forms[name]} if name else {} if choice == "none" else forms, name or choice == "required"
    schema = None if must else _schema(get("response_format", Mapping, {}))
    stop, temperature = body.get("stop") or [], get("temperature", (int, float), 0)
    stops = [_is(one, str, "stop") for one in ([stop] if isinstance(stop, str) else _is(stop, list, "stop"))]
    if not 0 <= temperature <= 2 or len(stops) > 16:
        raise SwarmKVError(f"temperature={temperature}: it is 0 to 2; stop has {len(stops)} texts: at most 16")
    seed, top_p = get("seed", int, secrets.randbits(31)) % INT32_MAX, get("top_p", (int, float), 1.0)
    most = get("max_completion_tokens", int, get("max_tokens", int, INT32_MAX))
    shown = whole_number("top_logprobs", get("top_logprobs", int, 0), 0, 20)
    return Asked(
        body=body,
        said=[_said(message) for message in messages],
        tools=tools if forms else [],
        grammar=grammar(schema, forms, parallel) if must or schema is not None else None,
        sampling=Sampling(temperature if temperature >= 1e-4 else 0, top_k=0, top_p=top_p, min_p=0.0, seed=seed),
        max_tokens=whole_number("max_tokens", most, 1),
        stops=tuple(filter(None, stops)),
        parallel=parallel,
        logprobs=shown if get("logprobs", bool, False) else None,
        stream=get("stream", bool, False),
        with_usage=bool(get("stream_options", Mapping, {}).get("include_usage")),
    )


def responses(body: Any) -> Asked:
    """Of /v1/responses, as chat completions ask it."""
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
    asked = {name: body[name] for name in _ALIKE if name in body} | {
        "messages": messages,
        "max_tokens": body.get("max_output_tokens"),
        "tools": [{**_is(tool, Mapping, "a tool"), "function": tool} for tool in get("tools", list, [])],
        "response_format": {"type": form.get("type", "text"), "json_schema": form},
        "logprobs": "message.output_text.logprobs" in get("include", list, []),
    }
    return chat(asked)._replace(body=body)


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
    kind = form.get("type", "text")
    if kind not in ("text", "json_object", "json_schema"):
        raise SwarmKVError(f"response_format {not_one_of(kind, ('text', 'json_object', 'json_schema'))}")
    asked = _get(_get(form, "json_schema", Mapping, {}), "schema", Mapping, {})
    return {"text": None, "json_object": {"type": "object"}, "json_schema": asked}[kind]


def _said(message: Any) -> Said:
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
    return Said(_ROLES[role], tuple(texts), tuple(calls))
