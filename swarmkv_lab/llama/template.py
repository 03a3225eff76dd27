"""Template: the words of a model's own chat template around a document and a question, which stay as they are."""

import json
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama import renderer

BETWEEN = "\n\n"
"""what stands between a document and the question after it"""
_WAIT_S = 60  # for the renderer, which ends itself after MOST_SECONDS of work, on a machine that is busy
_AROUND = "\n \t"
_KEPT = "Aa\n\n  \t<b>&amp;\"'\\n{{x}}{% y %}é中\U0001f600 z"  # what a template might escape, fold or strip


class Turn(NamedTuple):
    """A user's turn, the first of a chat."""

    before: str
    """what the template puts before a user's words: markers, its default system prompt"""
    after: str
    """what it puts after them: the end of the turn, and the beginning of the assistant's"""
    strips: bool
    """whether white space around a user's words is removed, as the template does with it"""


def turn(template: str, options: Mapping[str, Any]) -> Turn:
    """The turn of one user who gives a document and then a question.

    Raises SwarmKVError for a template that fails, or in which these are changed, dropped, repeated or reordered.
    """
    document, question = (f"{secrets.token_hex(8)}{_KEPT}{secrets.token_hex(8)}" for _ in range(2))
    asked = f"{document}{BETWEEN}{question}"
    forms = [(absent, parts) for absent in (False, True) for parts in (False, True)]
    chats = [_chat([("user", text)], *form) for form in forms for text in (asked, f"{_AROUND}{asked}{_AROUND}")]
    texts = _rendered(template, chats, options)
    reasons = []
    for (plain, error), (spaced, _) in zip(texts[::2], texts[1::2], strict=True):
        before, found, after = (plain or "").partition(asked)
        if plain is None:
            reasons.append(error)
        elif not found or document in before + after or question in before + after:
            reasons.append("it changes, drops, repeats or reorders a user's words")
        elif spaced in (plain, f"{before}{_AROUND}{asked}{_AROUND}{after}"):
            return Turn(before, after, spaced == plain)
        else:
            reasons.append("it changes the white space around a user's words")
    raise SwarmKVError(f"its chat template cannot put a document and then a question in a user's turn: {reasons[0]}")


def around_role(template: str, options: Mapping[str, Any]) -> tuple[str, str]:
    """What the template puts before a system prompt, and between it and the user's words.

    Raises SwarmKVError for a template that fails with one, or changes, drops, repeats or reorders it.
    """
    role, asked = (f"{secrets.token_hex(8)}{_KEPT}{secrets.token_hex(8)}" for _ in range(2))
    forms = [(absent, parts) for absent in (False, True) for parts in (False, True)]
    chats = [_chat([("system", role), ("user", asked)], *form) for form in forms]
    reasons = []
    for text, error in _rendered(template, chats, options):
        before, found, rest = (text or "").partition(role)
        between, there, after = rest.partition(asked)
        if text is not None and found and there and role not in between + after and asked not in before + after:
            return before, between
        reasons.append(error if text is None else "it changes, drops, repeats or reorders a system prompt")
    raise SwarmKVError(f"its chat template cannot put a system prompt before a document: {reasons[0]}")


def chat(template: str, messages: Sequence[tuple[str, str]], options: Mapping[str, Any]) -> str:
    """(role, content) pairs as the template renders them, up to where the assistant's answer begins."""
    chats = [_chat(messages, absent, parts=False) for absent in (False, True)]
    (text, error), (other, _) = _rendered(template, chats, options)
    if (text := other if text is None else text) is None:
        raise SwarmKVError(f"its chat template refuses these messages: {error}")
    return text


def _chat(messages: Sequence[tuple[str, str]], absent: bool, parts: bool) -> dict[str, Any]:
    """What a template is given. absent: there are no tools, which most know as None, and some as not defined."""
    content: Any = (lambda text: [{"type": "text", "text": text}]) if parts else str
    said = [{"role": role, "content": content(text)} for role, text in messages]
    return {"messages": said, "add_generation_prompt": True} | ({} if absent else {"tools": None, "documents": None})


def _rendered(template: str, chats: list[Any], options: Mapping[str, Any]) -> list[tuple[str | None, str]]:
    """A text and no error for each of the chats, or None and the error."""
    asked = json.dumps({"template": template, "chats": chats, "options": dict(options)})
    command = [sys.executable, "-P", renderer.__file__]
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=_WAIT_S)
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise SwarmKVError(
            f"its chat template was stopped: it needs more than {renderer.MOST_SECONDS} s or "
            f"{renderer.MOST_BYTES:,} bytes, or ended the process that renders it"
        ) from error
    if unknown := answer["unknown"]:
        raise SwarmKVError(f"its chat template knows no {', '.join(unknown)}: leave it out of chat_options")
    return [(text, error) for text, error in answer["rendered"]]
