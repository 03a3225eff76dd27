"""Requests as agent frameworks send them, judged by OpenAI's own types, whole and streamed. On the speaking twin."""

import json

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

import swarmkv_lab as lab
from swarmkv_lab.llama.conversation import AnswerText, Conversation, Message
from swarmkv_lab.llama.grammar import CALL, CALLED

SYSTEM, USER = {"role": "system", "content": "You review contracts."}, {"role": "user", "content": "Who sells?"}
NOTHING = {"type": "object", "properties": {}}
CHOICE = {"type": "object", "properties": {"next": {"enum": ["law", "end"]}}, "required": ["next"]}
STRICT = {**CHOICE, "additionalProperties": False}


def tool(name, parameters, **more):
    return {"type": "function", "function": {"name": name, "description": "Ask.", "parameters": parameters, **more}}


def called(name, arguments="{}"):
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    answered = {"role": "tool", "tool_call_id": "call_1", "name": name, "content": "Law is at work."}
    return [{"role": "assistant", "content": None, "tool_calls": [call]}, answered]


SCHEMA = {"type": "json_schema", "json_schema": {"name": "Route", "schema": STRICT, "strict": True}}
CHAT = {
    "openai-agents": {"messages": [SYSTEM, USER], "reasoning_effort": "none", "verbosity": "low"},
    "openai-agents, a handoff": {
        "messages": [SYSTEM, USER], "tools": [tool("transfer_to_law", {**NOTHING, "additionalProperties": False})],
        "tool_choice": "required", "parallel_tool_calls": False,
    },
    "openai-agents, after it": {"messages": [SYSTEM, USER, *called("transfer_to_law")]},
    "langgraph, a supervisor": {
        "messages": [SYSTEM, USER], "tools": [tool("transfer_to_law", NOTHING), tool("transfer_to_cost", NOTHING)],
        "tool_choice": "required", "parallel_tool_calls": False,
    },
    "langchain, a function of nothing": {
        "messages": [USER], "tools": [{"type": "function", "function": {"name": "look"}}], "tool_choice": "required",
        "parallel_tool_calls": False,
    },
    "langgraph, back from an agent": {
        "messages": [SYSTEM, {**USER, "name": None}, {"role": "assistant", "content": "Ada.", "name": "law"},
                     *called("transfer_back")],
        "tools": [tool("transfer_to_law", NOTHING)],
    },
    "langchain, structured": {"messages": [USER], "response_format": SCHEMA},
    "langchain, settings": {"messages": [USER], "temperature": 0.7, "top_p": 0.9, "seed": 3, "stop": ["\n"]},
    "an agent that was told nothing": {"messages": [{"role": "user", "content": "\n\n"}]},
    "pydantic-ai, its output": {
        "messages": [USER], "tools": [tool("final_result", STRICT, strict=True)], "tool_choice": "required",
        "parallel_tool_calls": False,
    },
    "pydantic-ai, tried again": {
        "messages": [USER, *called("final_result", '{"next": "law"}'), SYSTEM, USER],
        "tools": [tool("final_result", STRICT, strict=True)], "tool_choice": "auto",
    },
    "smolagents": {
        "messages": [{"role": one["role"], "content": [{"type": "text", "text": one["content"]}]}
                     for one in (SYSTEM, USER)],
        "tools": [tool("final_answer", {"type": "object", "properties": {"n": {"enum": [1]}}, "required": ["n"]})],
        "tool_choice": "required", "stop": ["Observation:", "Calling tools:"], "parallel_tool_calls": False,
    },
    "crewai": {"messages": [SYSTEM, {"role": "user", "content": "\nCurrent Task: Sell.\n\nBegin!\n\nThought:"}]},
}  # fmt: skip
FUNCTION = {"type": "function", "name": "ask", "description": "Ask.", "parameters": STRICT, "strict": True}
CALLING = {"type": "function_call", "call_id": "call_1", "name": "ask", "arguments": '{"next": "law"}', "id": "fc_1"}
RESPONSES = {
    "openai-agents": {"include": [], "input": [USER], "instructions": "Be brief.", "tools": [],
                      "reasoning": {"effort": "none"}, "text": {"verbosity": "low"}},
    "openai-agents, a tool": {"include": [], "input": [USER], "tools": [FUNCTION], "parallel_tool_calls": False,
                              "tool_choice": {"type": "function", "name": "ask"}},
    "openai-agents, after it": {
        "input": [USER, {**CALLING, "status": "completed"},
                  {"type": "function_call_output", "call_id": "call_1", "output": "Ada."}],
        "instructions": "Be brief.", "tools": [FUNCTION],
    },
    "openai-agents, a session": {
        "input": [USER, {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
                         "content": [{"type": "output_text", "text": "Ada.", "annotations": []}]}, USER],
        "instructions": "Be brief.",
    },
    "langchain": {"input": [{**SYSTEM, "type": "message"}, {**USER, "type": "message"}],
                  "text": {"format": {"type": "json_schema", "name": "Route", "schema": STRICT, "strict": True}}},
}  # fmt: skip


@pytest.fixture(scope="module")
def client(speaker_path):
    how = {"api_key": "none", "max_retries": 0, "timeout": 60}
    with (
        lab.load_model(speaker_path) as model,
        lab.serve(model) as server,
        openai.OpenAI(base_url=server.url, **how) as client,
    ):
        yield client


def sent(client, path, body):
    """The reply whole, and the events of the same request streamed."""
    whole = client.post(path, body={"model": "any", **body}, cast_to=object)
    asked = {"model": "any", **body, "stream": True}
    streamed = client.post(path, body=asked, cast_to=object, stream=True, stream_cls=openai.Stream[object])
    return whole, list(streamed)


@pytest.mark.parametrize("name", CHAT)
def test_chat(client, name):
    forced = CHAT[name].get("tool_choice") == "required"
    most = 90 if forced or "response_format" in CHAT[name] else 8
    body = {"max_completion_tokens": most, "stream_options": {"include_usage": True}, **CHAT[name]}
    whole, chunks = sent(client, "/chat/completions", body)
    reply = ChatCompletion.model_validate(whole)
    pieces = [ChatCompletionChunk.model_validate(chunk) for chunk in chunks]
    assert [piece.usage is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].usage.prompt_tokens == reply.usage.prompt_tokens
    assert {piece.id for piece in pieces} == {pieces[0].id}
    ends = [piece.choices[0].finish_reason for piece in pieces[:-1]]
    assert set(ends[:-1]) == {None}
    assert ({reply.choices[0].finish_reason, ends[-1]} == {"tool_calls"}) is forced
    if forced:
        (call,), (delta,) = reply.choices[0].message.tool_calls, pieces[-3].choices[0].delta.tool_calls
        for one in (call.function, delta.function):
            parameters = {
                each["function"]["name"]: each["function"].get("parameters", NOTHING) for each in body["tools"]
            }[one.name]
            assert set(json.loads(one.arguments)) == set(parameters["properties"])
    if "response_format" in body:
        assert json.loads(reply.choices[0].message.content)["next"] in ("law", "end")


@pytest.mark.parametrize("name", RESPONSES)
def test_responses(client, name):
    free = {"tool_choice", "text"}.isdisjoint(RESPONSES[name])
    body = {"max_output_tokens": 8 if free else 90, **RESPONSES[name]}
    whole, events = sent(client, "/responses", body)
    reply, event_of = Response.model_validate(whole), TypeAdapter(ResponseStreamEvent).validate_python
    read = [event_of(event) for event in events]
    last = read[-1].response
    assert [item.type for item in last.output] == [item.type for item in reply.output]
    done = [event.item for event in read if event.type == "response.output_item.done"]
    assert [item.id for item in done] == [item.id for item in last.output]
    assert last.usage.input_tokens == reply.usage.input_tokens
    if "tool_choice" in body:
        assert (last.status, json.loads(last.output[0].arguments)["next"] in ("law", "end")) == ("completed", True)
    if "format" in body.get("text", {}):
        assert json.loads(reply.output_text)["next"] in ("law", "end")


def test_calls_that_are_whole_are_made_though_the_next_one_is_cut_off(speaker):
    whole = f'{CALL}\n{{"name": "f", "arguments": {{"a": 1}}}}\n{CALLED}'
    for text, calls in ((whole + "\n" + whole[:-30], [("f", '{"a": 1}')]), (whole[:-30], [])):
        answer = AnswerText(speaker, (), [tool("f", NOTHING)], True)
        said = "".join(answer.add(token) for token in speaker.tokenize(text))
        rest, found = answer.rest()
        assert found == calls
        assert said + rest == ("" if calls else text)


def test_nothing_said_is_a_prompt(speaker):
    for cut in (False, True):
        prompt = Conversation(speaker).prompt([Message("user", ("",))], cut=cut)
        assert prompt.document_end == 0
        assert speaker.detokenize(prompt.tokens, special=True).endswith("assistant\n")
