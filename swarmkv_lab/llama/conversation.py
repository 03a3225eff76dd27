"""Conversation: whole chats with tools, by a model's own template around words that stay text; and answers."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.grammar import CALL, CALLED
from swarmkv_lab.llama.model import Model

BETWEEN = "\n\n"
"""between texts of one message, as between a document and a question"""
_CALLS = 64  # of tools in one answer: after that it is a model that does not end
_NATIVE = re.compile(rf'{CALL}\s*{{"name": "§", "arguments": §}}\s*{CALLED}')
_TOOLS = f"""You can call these tools, one JSON object a line:
%s

To call one, write {CALL}, a line of JSON with its name and arguments, and {CALLED}:
{CALL}
{{"name": "...", "arguments": {{...}}}}
{CALLED}"""


class Message(NamedTuple):
    """A message: its role (system, user, assistant, tool), its texts, and calls of tools, (name, arguments' JSON)."""

    role: str
    texts: tuple[str, ...] = ()
    calls: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """All of them, a blank line between."""
        return BETWEEN.join(self.texts)


class ChatTokens(NamedTuple):
    """A chat's tokens, int32 (n,), and of these how many end the longest text, and each of the last messages."""

    tokens: np.ndarray
    document_end: int
    marks: frozenset[int]


class Conversation:
    """How a model is told the messages of a chat. Raises SwarmKVError for a model without a chat template."""

    def __init__(self, model: Model) -> None:
        if model.chat_template is None:
            raise SwarmKVError(f"{model.name} has no chat template: messages cannot be put to it")
        self.model = model

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = (), *, cut: bool = False) -> ChatTokens:
        """The tokens up to where the answer begins.

        cut: the longest text, or what stands before its last blank line if that is most of it, is tokenized with what
        is before it, and the rest by itself: as ``read`` and ``ask`` do.
        """
        parts = self._parts(messages, tools)
        texts_at = [i for i, (_, trusted) in enumerate(parts) if not trusted]
        longest = max(texts_at, key=lambda i: len(parts[i][0]), default=0)  # an agent may have had nothing to say
        if not cut or not texts_at:
            tokens, end = self.model._tokens(parts), 0
        else:
            text = parts[longest][0]
            at = text.rfind(BETWEEN)
            at = len(text) if at < len(text) / 2 else at
            head = self.model._tokens([*parts[:longest], (text[:at], False)])
            rest = self.model._tokens([(text[at:], False), *parts[longest + 1 :]], continued=True)
            tokens, end = np.concatenate([head, rest]), len(head)
        marks = set[int]()
        if self.model.kind.recurrent or self.model.kind.window:
            for i in {longest, *texts_at[-2:]}:
                before = self.model._tokens(parts[: i + 1])
                n = min(len(before), len(tokens))
                marks.add(int(np.argmin([*(before[:n] == tokens[:n]), False])))
        return ChatTokens(tokens, end, frozenset(marks))

    def document_first(self, messages: Sequence[Message], tools: Sequence[Any]) -> tuple[list[Message], list[Any]]:
        """The longest of the user's texts first, then the system prompt and all else: another prompt, as ``read``'s."""
        messages, tools = self._described(messages, tools)
        document = max((text for one in messages if one.role == "user" for text in one.texts), key=len, default="")
        if not document:
            return list(messages), list(tools)
        beside, left = list[str](), list[Message]()
        for role, given, calls in messages:
            texts = [text for text in given if role != "user" or text != document]
            if role == "system" or (role == "user" and not left):
                beside += texts
            elif texts or calls:
                left.append(Message(role, tuple(texts), calls))
        return [Message("user", (document, *beside)), *left], list(tools)

    def _parts(self, messages: Sequence[Message], tools: Sequence[Any]) -> list[tuple[str, bool]]:
        """(text, whether the template's), in their order, the first and the last of which are the template's."""
        messages, tools = self._described(messages, tools)
        return self.model._rendered([(one.role, one.text, one.calls) for one in messages], tools)

    def _described(self, messages: Sequence[Message], tools: Sequence[Any]) -> tuple[Sequence[Message], Sequence[Any]]:
        """Where the template has not the form of calls that is known here, tools and calls are told in words."""
        if not (tools or any(one.calls or one.role == "tool" for one in messages)) or self._native:
            return messages, tools
        told: list[Message] = []
        for role, texts, calls in messages:
            if role == "tool":
                role, texts = "user", (f"<tool_response>\n{BETWEEN.join(texts)}\n</tool_response>",)
                if told and told[-1].role == "user":
                    role, texts = "user", (*told.pop().texts, *texts)
            named = [f'{{"name": {json.dumps(name)}, "arguments": {given}}}' for name, given in calls]
            called = [f"{CALL}\n{call}\n{CALLED}" for call in named]
            told.append(Message(role, (*texts, "\n".join(called)) if called else tuple(texts)))
        if tools:
            about = _TOOLS % "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
            first = told.pop(0) if told and told[0].role == "system" else Message("system")
            told.insert(0, Message("system", (*first.texts, about)))
        return told, ()

    @cached_property
    def _native(self) -> bool:
        """Whether the template writes tools and their calls in the form that is known here."""
        with suppress(SwarmKVError):
            chat = [Message("user", ("x",)), Message("assistant", (), (("x", "{}"),)), Message("tool", ("x",))]
            parts = self.model._rendered([(one.role, one.text, one.calls) for one in chat], [{}])
            return bool(_NATIVE.search("".join(text if trusted else "§" for text, trusted in parts)))
        return False


class AnswerText:
    """An answer's tokens turned into text as they come, up to a stop, and calls of tools apart from it."""

    def __init__(self, model: Model, stops: Sequence[str], tools: Sequence[Any], parallel: bool) -> None:
        self._model, self._stops, self._parallel = model, stops, parallel
        self._names = {tool["function"]["name"] for tool in tools}
        self._tokens: list[int] = []
        self._done = 0  # tokens whose text is known
        self._held = ""  # text that may yet turn out to be a stop or a call
        self._calling = False
        self.stopped = False
        """whether a text came that was to end the answer"""

    def add(self, token: int) -> str:
        """The text that is sure after one more token."""
        self._tokens.append(token)
        before = self._tokens[max(0, self._done - 1) : self._done]
        text = self._model.detokenize([*before, *self._tokens[self._done :]])
        if text.endswith("\ufffd") and len(self._tokens) < self._done + 8:  # a part of a character
            return ""
        self._done = len(self._tokens)
        self._held += text[len(self._model.detokenize(before)) if before else 0 :]
        return self._sayable()

    def _sayable(self) -> str:
        if found := [at for stop in self._stops if (at := self._held.find(stop)) >= 0]:
            self._held, self.stopped = self._held[: min(found)], True
        at = self._held.find(CALL) if self._names else -1
        self._calling |= at >= 0
        ends = (*self._stops, *([CALL] if self._names else []))
        keep = max((_overlap(self._held, end) for end in ends), default=0)
        at = at if self._calling else len(self._held) if self.stopped else len(self._held) - keep
        text, self._held = self._held[: max(at, 0)], self._held[max(at, 0) :]
        return text

    def rest(self) -> tuple[str, list[tuple[str, str]]]:
        """At the end: the text that is left, and calls, (name, arguments' JSON)."""
        if not self.stopped and self._done < len(self._tokens):
            self._held += self._model.detokenize(self._tokens[self._done :])
        calls = self._calls() if self._calling else []
        return ("" if calls else self._held), (calls if self._parallel else calls[:1])

    def _calls(self) -> list[tuple[str, str]]:
        calls: list[tuple[str, str]] = []
        at = self._held.find(CALL)
        while at >= 0 and len(calls) < _CALLS:
            try:
                text = self._held[at + len(CALL) :].lstrip()
                call, end = json.JSONDecoder().raw_decode(text)
                given = call.get("arguments", {})
                if call["name"] not in self._names:
                    return []
                calls.append((call["name"], given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                return calls  # the first one is no call: text; a later one was cut off
            at = self._held.find(CALL, len(self._held) - len(text) + end)
        return calls


def _overlap(text: str, end: str) -> int:
    """The most characters that a text ends with and ``end`` begins with."""
    return next((n for n in range(min(len(text), len(end) - 1), 0, -1) if text.endswith(end[:n])), 0)
