"""Serving measured: the same HTTP requests to the lab's server and to llama-server, each started anew, in turns.

Four kinds of work: eight reviewers as agent frameworks send them (a role, then the document: "roles first"), eight
questions behind one leading document, eight documents that share nothing, and short requests beside a long prefill.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any, NamedTuple

import httpx
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import swarmkv_lab as lab
from swarmkv_lab.errors import whole_number
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.serve.server import LAYOUTS, Server
from swarmkv_studies.peers.server import LlamaServer

AGENTS = 8
ROLE = "You are the {} reviewer of a company that may be bought. Answer from the document alone."
ROLES_FIRST, LEADING, APART, SHORT = "roles first", "one leading document", "eight documents", "beside a long prefill"
OURS, SLOTS, UNIFIED = "lab.serve", "llama-server", "llama-server, unified"
_FLAGS = {SLOTS: "--no-kv-unified", UNIFIED: "--kv-unified"}
_MORE = 200  # tokens of a request beside its document, at most: role, question, template
_ASK_S = 3600


class Arm(NamedTuple):
    """Who does what in a round."""

    work: str
    server: str
    layout: str = LAYOUTS[0]
    """of the lab's server"""


ROUND = (
    Arm(ROLES_FIRST, OURS, "composed"), Arm(ROLES_FIRST, SLOTS), Arm(ROLES_FIRST, UNIFIED),
    Arm(LEADING, OURS), Arm(LEADING, SLOTS), Arm(APART, OURS), Arm(APART, SLOTS), Arm(SHORT, OURS), Arm(SHORT, SLOTS),
)  # fmt: skip
COUNTED = tuple(Arm(ROLES_FIRST, OURS, layout) for layout in LAYOUTS)
"""the layouts, whose tokens are counted: one round is enough"""


def serving_rounds(
    model: lab.Model,
    depth: int = 1024,
    long: int = 3501,
    repeats: int = 3,
    *,
    arms: Sequence[Arm] = ROUND,
    once: Sequence[Arm] = COUNTED[:2],
    max_tokens: int = 16,
) -> pd.DataFrame:
    """A row per arm and round: repeat, work, server, layout, requests, prompt_tokens, computed_tokens and times in ms.

    depth, long: tokens of a document, and of the one whose prefill goes on; all are parts of the dossier. once: arms of
    the first round alone. end_to_end_ms: from the call to the last answer's end; p95_ttft_ms: of the short requests.
    Raises SwarmKVError for numbers below 1, and where llama-server is asked for and is not built.
    """
    for name, number in {"depth": depth, "long": long, "repeats": repeats, "max_tokens": max_tokens}.items():
        whole_number(name, number, 1)
    tokens = model.tokenize(lab.load_document("dossier"))
    parts = [model.detokenize(np.resize(tokens[i * depth :], depth)) for i in range(AGENTS)]
    asked: dict[str, tuple[str | Sequence[str], str]] = {
        ROLES_FIRST: (parts[0], ROLE), LEADING: (parts[0], ""), APART: (parts, ROLE)
    }  # fmt: skip
    bodies = {work: reviewers(*about, max_tokens) for work, about in asked.items()}
    long_text = model.detokenize(tokens[:long])
    rows = []
    todo = [(repeat, arm) for repeat in range(repeats) for arm in (*arms, *(() if repeat else once))]
    for repeat, arm in tqdm(todo, unit="arm", disable=None):
        cells = long + 4 * _MORE if arm.work == SHORT else depth + _MORE + max_tokens
        with _opened(arm, model, cells) as client:
            measured = _beside(client, long_text) if arm.work == SHORT else _at_once(client, bodies[arm.work])
        rows.append({"repeat": repeat, **arm._asdict(), **measured})
    return pd.DataFrame(rows)


def reviewers(document: str | Sequence[str], role: str = ROLE, max_tokens: int = 16) -> list[dict[str, Any]]:
    """The requests of eight agents over a document, or over one each.

    role: their system prompt, in which {} becomes an agent's name; none if it is empty.
    """
    documents = [document] * AGENTS if isinstance(document, str) else document
    found = []
    for (name, question), text in zip(islice(lab.load_agents("dossier").items(), AGENTS), documents, strict=True):
        system = [{"role": "system", "content": role.format(name)}] if role else []
        messages = [*system, {"role": "user", "content": f"{text}\n\n{question}"}]
        found.append({"messages": messages, "max_tokens": max_tokens, "temperature": 0})
    return found


def ask_at_once(url: str, bodies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Send requests to an endpoint, all at the same time; columns as in serving_rounds."""
    with _client(url) as client:
        return _at_once(client, bodies)


def _client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url.removesuffix("/v1"), timeout=_ASK_S, trust_env=False)


@contextmanager
def _opened(arm: Arm, model: lab.Model, cells: int) -> Iterator[httpx.Client]:
    """A client of a new server that has answered one request, which shares nothing with those to come."""
    with ExitStack() as stack:
        if arm.server == OURS:
            client = stack.enter_context(_client(stack.enter_context(Server(model, layout=arm.layout)).url))
        else:
            settings = ContextSettings(n_ctx=AGENTS * cells)
            client = stack.enter_context(LlamaServer(model, settings, AGENTS, _FLAGS[arm.server])).client
        _ask(client, _short("0"))
        yield client


def _ask(client: httpx.Client, body: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's usage of a request."""
    answer = client.post("/v1/chat/completions", json=dict(body))
    answer.raise_for_status()
    return answer.json()["usage"]


def _at_once(client: httpx.Client, bodies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    start = time.perf_counter()
    with ThreadPoolExecutor(len(bodies)) as threads:
        usages = list(threads.map(lambda body: _ask(client, body), bodies))
    return _counted(usages) | {"end_to_end_ms": 1e3 * (time.perf_counter() - start)}


def _beside(client: httpx.Client, document: str) -> dict[str, Any]:
    """One short request after another, as long as a long prompt is read: the 95th percentile of their first tokens."""
    times, usages = list[float](), list[dict[str, Any]]()
    with ThreadPoolExecutor(1) as threads:
        long = threads.submit(_ask, client, _short(document))
        while not (times and long.done()):
            start = time.perf_counter()
            usages.append(_ask(client, _short(f"Is {len(times):,} a prime number?")))
            times.append(1e3 * (time.perf_counter() - start))
    return _counted([*usages, long.result()]) | {"p95_ttft_ms": float(np.percentile(times, 95))}


def _short(text: str) -> dict[str, Any]:
    """A request for one token, which is its whole answer."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 1, "temperature": 0}


def _counted(usages: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    sent = sum(usage["prompt_tokens"] for usage in usages)
    cached = sum((usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0) for usage in usages)
    return {"requests": len(usages), "prompt_tokens": sent, "computed_tokens": sent - cached}
