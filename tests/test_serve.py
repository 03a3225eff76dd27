"""The endpoint, as OpenAI's own client sees it, and as those see it who do not behave. On the speaking twin."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import httpx
import numpy as np
import openai
import pandas as pd
import pytest
from pydantic import BaseModel
from vocabulary import chat_text

import swarmkv_lab as lab
from swarmkv_lab.llama.conversation import Conversation

TOOLS = [
    {
        "type": "function",
        "function": {"name": "find", "parameters": {"type": "object", "properties": {"n": {"enum": [1]}}}},
    },
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "additionalProperties": False}}},
]
SCHEMA = {
    "type": "object",
    "properties": {"sold": {"type": "boolean"}},
    "required": ["sold"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "deal", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def server(speaker_path):
    with lab.load_model(speaker_path) as model, lab.serve(model) as server:
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def asks(*texts, **more):
    roles = ["system", "user"] if len(texts) > 1 else ["user"]
    return {"model": "any", "messages": [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)], **more}


def idle(server):
    for _ in range(1000):
        if not server.engine.live and not server.engine.queue:
            break
        time.sleep(0.01)
    assert not server.engine.live
    assert not server.engine.queue
    assert all(not held.live for held in server.engine.prefixes.entries.values())


# -- what it answers


def test_chat_whole_and_streamed_are_the_same(server, client):
    asked = asks("Be brief.", "Who sells the house?", max_tokens=12)
    whole = client.chat.completions.create(**asked)
    assert (whole.object, whole.choices[0].finish_reason, whole.usage.completion_tokens) == (
        "chat.completion",
        "length",
        12,
    )
    prompt = server.model.tokenize(
        chat_text(server.model, [("system", "Be brief."), ("user", "Who sells the house?")]), special=True
    )
    assert whole.usage.prompt_tokens == len(prompt)
    with server.model.context(512) as ctx:
        ctx.decode(prompt)
        assert whole.choices[0].message.content == ctx.generate(12)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == len(prompt) - 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert client.chat.completions.create(
        **{**asked, "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}
    )


def test_stop(client):
    asked = asks("Tell me of the house.", max_tokens=20)
    text = client.chat.completions.create(**asked).choices[0].message.content
    cut = client.chat.completions.create(**asked, stop=[text[7:10], "nowhere"])
    assert cut.choices[0].message.content == text[: text.find(text[7:10])]
    assert cut.choices[0].finish_reason == "stop"
    streamed = client.chat.completions.create(**asked, stop=text[7:10], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == cut.choices[0].message.content


def test_tools_required_named_and_none(client):
    for choice, names in (
        ("required", {"find", "stop"}),
        ({"type": "function", "function": {"name": "stop"}}, {"stop"}),
    ):
        asked = asks("Find it.", tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, max_tokens=100)
        choice = client.chat.completions.create(**asked).choices[0]
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert call.function.name in names
        assert isinstance(json.loads(call.function.arguments), dict)
    for choice in ("none", "auto"):
        plain = client.chat.completions.create(**asks("Find it.", tools=TOOLS, tool_choice=choice, max_tokens=5))
        assert plain.choices[0].message.tool_calls is None


class Deal(BaseModel):
    sold: bool


def test_a_schema_is_kept_to(client):
    for text in ("Is it sold?", "Answer in French."):
        parsed = client.chat.completions.parse(**asks(text), response_format=Deal).choices[0].message.parsed
        assert isinstance(parsed, Deal)
    both = client.chat.completions.create(**asks("Now?", response_format=FORM, tools=TOOLS, max_tokens=60)).choices[0]
    assert both.message.tool_calls or set(json.loads(both.message.content)) == {"sold"}


def test_responses_whole_and_streamed(client):
    asked = {"model": "any", "instructions": "Be brief.", "input": "Who sells?", "max_output_tokens": 8}
    whole = client.responses.create(**asked)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert whole.usage.output_tokens == 8
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response  # it has one, complete or not
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.incomplete"
    assert "response.output_text.delta" in kinds
    deal = client.responses.parse(model="any", input="Is it sold?", text_format=Deal)
    assert isinstance(deal.output_parsed, Deal)
    assert deal.status == "completed"
    tools = [{"type": "function", **tool["function"], "strict": True} for tool in TOOLS]
    how = {"model": "any", "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    called = client.responses.create(**how, input="Find it.", max_output_tokens=100)
    (call,) = called.output
    assert call.type == "function_call"
    events = list(client.responses.create(**how, input="Find it.", max_output_tokens=100, stream=True))
    assert events[-1].response.output[0].arguments == call.arguments
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_models_health_metrics_stats(server, client):
    assert [model.id for model in client.models.list()] == [server.model.name]
    client.chat.completions.create(**asks("One.", max_tokens=2))
    base = server.url.removesuffix("/v1")
    assert httpx.get(f"{base}/health").json() == {"status": "ok"}
    metrics = dict(line.split() for line in httpx.get(f"{base}/metrics").text.splitlines() if not line.startswith("#"))
    assert int(metrics["swarmkv_prompt_tokens_total"]) >= int(metrics["swarmkv_computed_tokens_total"]) > 0
    stats, timeline = server.stats(), server.timeline()
    assert (stats.prompt_tokens == stats.shared_tokens + stats.computed_tokens)[stats.ended != "cancelled"].all()
    assert set(timeline.phase) == {"waited", "prefill", "generate"}
    assert (timeline.end_ms >= timeline.start_ms).all()
    assert isinstance(stats, pd.DataFrame)


# -- what is shared


def at_once(server, bodies):
    """Replies to all of them, sent before the engine looks."""
    replies = [None] * len(bodies)

    def send(i):
        replies[i] = httpx.post(f"{server.url}/chat/completions", json=bodies[i], timeout=60)

    threads = [threading.Thread(target=send, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.status_code for reply in replies] == [200] * len(bodies)
    return replies


DOCUMENT = "The house on the hill is for sale, and its roof was mended in spring. " * 35
ROLES = [
    f"You are {who}, and {who} alone." for who in ("a judge", "a nurse", "an actor", "a cook", "a baker", "a clerk")
]


@pytest.mark.parametrize(("layout", "how"), [("as_sent", None), ("document_first", "prefix"), ("composed", "composed")])
def test_layouts_count_what_they_share(speaker, layout, how):
    with lab.serve(speaker, layout=layout) as server:
        bodies = [asks(role, DOCUMENT, max_tokens=2) for role in ROLES]
        for body in bodies:
            body["messages"].append({"role": "user", "content": "Who sells?"})
        first = httpx.post(f"{server.url}/chat/completions", json=bodies[0], timeout=60)
        computed = server.engine.counts["computed_tokens"]
        replies = at_once(server, bodies[1:])
        more = server.engine.counts["computed_tokens"] - computed
        n = len(speaker.document(DOCUMENT))
        assert computed > n
        for reply in replies:
            details = reply.json()["usage"]["prompt_tokens_details"]
            assert details["layout"] == layout
            if how:
                assert details["shared_by"] == how
                assert f"layout={layout}; how={how}; shared={details['cached_tokens']}" == reply.headers["X-SwarmKV"]
        assert more < 5 * 110 if how else more > 4 * n
        assert first.json()["usage"]["prompt_tokens_details"]["shared_by"] == "computed"


def test_exact_is_fan_out(speaker):
    questions = ["Who sells?", "Who buys?", "When?"]
    run = lab.fan_out(speaker, DOCUMENT, questions, "shared", max_tokens=8)
    with lab.serve(speaker, exact=True) as server:
        bodies = [asks(f"{DOCUMENT}\n\n{question}", max_tokens=8) for question in questions]
        replies = at_once(server, bodies)
        for reply, answer in zip(replies, run.answers.values(), strict=True):
            assert reply.json()["choices"][0]["message"]["content"] == answer
        assert server.engine.counts["computed_tokens"] == run.metrics["computed_tokens"]
        drawn = [at_once(server, [asks("Say.", max_tokens=9, temperature=1.5, seed=seed)]) for seed in (1, 1, 2)]
        texts = [reply.json()["choices"][0]["message"]["content"] for (reply,) in drawn]
        assert texts[0] == texts[1] != texts[2]


# -- those who do not behave


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff", b'{"messages": NaN}', b'{"messages": 3}', b"[" * 100_000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        *(
            json.dumps(body).encode()
            for body in (
                {"messages": []},
                {"messages": [{"role": "king", "content": "a"}]},
                {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
                {"messages": [{"role": "user", "content": {"a": 1}}]},
                {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
                asks("a", max_tokens=0), asks("a", max_tokens="5"), asks("a", temperature=-1), asks("a", top_p=0),
                asks("a", temperature=float("nan")), asks("a", n=2), asks("a", logit_bias={"5": 1}),
                asks("a", logprobs=True), asks("a", seed=1.5),
                asks("a", stop=[3]), asks("a", stream="yes"), asks("a", tools=[3]), asks("a", tool_choice="required"),
                asks("a", tools=TOOLS, tool_choice={"type": "function", "function": {"name": "other"}}),
                asks("a", tools=[{"type": "web_search"}]), asks("a", response_format={"type": "xml"}),
                asks("a", response_format={"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}),
                asks("a", response_format={"type": "json_schema", "json_schema": {"schema": {"not": {}}}}),
                asks("a", tools=[TOOLS[0] | {"function": {"name": "f", "parameters": {"type": "array"}}}],
                     tool_choice="required"),
                asks("a " * 30_000),
            )
        ),
    ],
    ids=lambda body: str(body)[2:42],
)  # fmt: skip
def test_bad_requests_are_400(server, body):
    refused(server, "chat/completions", body)


def refused(server, path, body):
    reply = httpx.post(f"{server.url}/{path}", content=body, timeout=60)
    assert reply.status_code == 400, reply.text
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "more",
    [{"input": 3}, {"input": [3]},
     {"input": [{"role": "assistant", "tool_calls": 5}, {"type": "function_call"}]},
     {"input": [{"type": "item_reference"}]}, {"previous_response_id": "x"},
     {"tools": [3]}, {"max_output_tokens": 0}, {"text": {"format": {"type": "xml"}}},
     {"instructions": 5}, {"input": []}],
)  # fmt: skip
def test_bad_responses_are_400(server, more):
    refused(server, "responses", json.dumps({"model": "any", "input": "a", **more}))


def test_others_pages_large_bodies_wrong_paths_and_keys(server, client, speaker):
    url = f"{server.url}/models"
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "["}):
        assert httpx.get(url, headers=headers).status_code == 403
    assert httpx.get(url, headers={"Origin": "http://localhost:3000"}).status_code == 200
    assert httpx.post(f"{server.url}/chat/completions", content=b" " * (server.most_bytes + 1)).status_code == 413
    with pytest.raises(openai.NotFoundError):
        client.get("/nothing", cast_to=object)
    assert httpx.get(f"{server.url}/responses").status_code == httpx.post(url).status_code == 405
    assert httpx.head(f"{server.url.removesuffix('/v1')}/health").status_code == 200
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**asks("word " * 9000))
    assert raised.value.code == "context_length_exceeded"
    with lab.serve(speaker, key="secret") as locked, openai.OpenAI(base_url=locked.url, api_key="other") as wrong:
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        assert wrong.with_options(api_key="secret").models.list().data
        base = locked.url.removesuffix("/v1")
        assert [httpx.get(f"{base}/{page}").status_code for page in ("health", "metrics")] == [200, 401]
    for how in ({"host": "0.0.0.0"}, {"layout": "other"}, {"layout": "composed", "exact": True}, {"port": 70_000}):
        with pytest.raises(lab.SwarmKVError):
            lab.serve(speaker, **how)


def test_a_full_queue_is_429(speaker):
    with lab.serve(speaker, most_waiting=1, n_seq_max=1) as server:
        url = f"{server.url}/chat/completions"
        send = lambda: httpx.post(url, json=asks("a", max_tokens=8000), timeout=60)  # noqa: E731
        threads = [threading.Thread(target=send) for _ in range(2)]
        for thread, there in zip(threads, (server.engine.live, server.engine.queue), strict=True):
            thread.start()
            while not there:
                time.sleep(0.01)
        reply = httpx.post(url, json=asks("b"))
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "2")
        assert reply.json()["error"]["code"] == "rate_limit_exceeded"
    for thread in threads:
        thread.join()


def test_who_is_read_slowly_holds_nobody_up_and_counts_as_waiting(speaker, monkeypatch):
    with lab.serve(speaker, most_waiting=2) as server:
        prompt, url = Conversation.prompt, f"{server.url}/chat/completions"
        go_on, begun, replies = threading.Event(), threading.Semaphore(0), []

        def slow(self, said, *more, **how):
            if said[0].text == "slow":
                begun.release()
                go_on.wait(60)
            return prompt(self, said, *more, **how)

        monkeypatch.setattr(Conversation, "prompt", slow)
        send = lambda: replies.append(httpx.post(url, json=asks("slow", max_tokens=1), timeout=60))  # noqa: E731
        threads = [threading.Thread(target=send) for _ in range(2)]
        threads[0].start()
        assert begun.acquire(timeout=60)
        assert httpx.post(url, json=asks("quick", max_tokens=4), timeout=60).status_code == 200
        threads[1].start()
        assert begun.acquire(timeout=60)
        reply = httpx.post(url, json=asks("quick"), timeout=60)
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "2")
        go_on.set()
        for thread in threads:
            thread.join()
        assert [reply.status_code for reply in replies] == [200, 200]


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_not_answered_further(server, stream):
    before = server.engine.counts["requests_cancelled"]
    body = asks("Tell me all of it.", max_tokens=7000, stream=stream)
    with httpx.Client(timeout=60 if stream else 0.3) as client:
        if stream:
            with client.stream("POST", f"{server.url}/chat/completions", json=body) as reply:
                next(reply.iter_bytes())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{server.url}/chat/completions", json=body)
    idle(server)
    assert server.engine.counts["requests_cancelled"] == before + 1


def test_a_fault_in_the_midst_is_500_and_the_next_one_is_answered(server, monkeypatch):
    monkeypatch.setattr(type(server.engine.ctx), "pop_logits", lambda *_: np.full(server.model.n_vocab, np.nan))
    reply = httpx.post(f"{server.url}/chat/completions", json=asks("Now?", max_tokens=2))
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
    monkeypatch.undo()
    assert httpx.post(f"{server.url}/chat/completions", json=asks("Now?", max_tokens=2)).status_code == 200


def test_closing_ends_what_is_going_on(speaker):
    server = lab.serve(speaker)
    replies = []

    def send(**more):
        try:
            with httpx.stream(
                "POST", f"{server.url}/chat/completions", json=asks("a", max_tokens=5000, **more), timeout=60
            ) as r:
                replies.append((r.status_code, r.read()))
        except httpx.HTTPError as error:
            replies.append((type(error), b""))

    threads = [threading.Thread(target=send, kwargs={"stream": stream}) for stream in (True, False)]
    for thread in threads:
        thread.start()
    while len(server.engine.live) < 2:
        time.sleep(0.01)
    server.close()
    server.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert all(b'"server_error"' in reply for _, reply in replies)
    assert sorted(status for status, _ in replies) == [200, 503]  # a stream had begun
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/models")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_the_command_ends_at_once_on_sigterm(speaker_path):
    command = [sys.executable, "-m", "swarmkv_studies", "serve", "--model", str(speaker_path), "--port", "0"]
    command += ["--hosts", "box"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, ExitStack() as at_end:
        at_end.callback(process.kill)
        url = process.stdout.readline().split()[-1]
        for name, status in (("box", 200), ("another", 403)):
            assert httpx.get(f"{url}/models", headers={"Host": name}, timeout=60).status_code == status
        body = asks("Tell me all of it.", max_tokens=7000, stream=True)
        with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=60) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            *_, error, done = filter(None, lines)
        assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"
        assert done == "data: [DONE]"
        assert process.wait(30) == 0
