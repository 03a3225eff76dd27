"""Template: the words of a model's own chat template around what is said, which stays as it is."""

import itertools
import json
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama import renderer

_WAIT_S = 60  # for the renderer, which ends itself after MOST_SECONDS of work, on a machine that is busy
_AROUND = "\n \t"
_KEPT = "Aa\n\n  \t<b>&amp;\"'\\n{{x}}{% y %}é中\U0001f600 z"  # what a template might escape, fold, strip or split


@dataclass(frozen=True)
class ChatTemplate:
    """A model's chat template and the variables that it is given; its errors name the model."""

    model: str
    source: str
    options: Mapping[str, Any]

    def around(self, *roles: str) -> tuple[list[str], bool]:
        """What stands before, between and after one message of each role, the last of them a user's, the first ones.

        And whether white space around the last one is removed. Raises SwarmKVError for a template that fails, or that
        changes, drops, repeats or reorders messages.
        """
        mark = secrets.token_hex(8)
        texts = [f"{mark}{role}{_KEPT}{mark}" for role in roles]
        wide = [*texts[:-1], f"{_AROUND}{texts[-1]}{_AROUND}"]
        forms = itertools.product((False, True), (False, True), (texts, wide))
        chats = [_chat(list(zip(roles, said, strict=True)), *form) for *form, said in forms]
        rendered = self._rendered(chats)
        reasons = []
        for (plain, error), (spaced, _) in zip(rendered[::2], rendered[1::2], strict=True):
            pieces = re.split("|".join(map(re.escape, texts)), plain or "")
            if plain is None:
                reasons.append(error)
            elif plain != _joined(pieces, texts) or mark in "".join(pieces):
                reasons.append("it changes, drops, repeats or reorders words")
            elif spaced in (plain, _joined(pieces, wide)):
                return pieces, spaced == plain
            else:
                reasons.append("it changes the white space around a user's words")
        raise SwarmKVError(f"{self.model}: its chat template has no place for {' and '.join(roles)}: {reasons[0]}")

    def chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = ()) -> str:
        """Messages as the template renders them, up to where the assistant's answer begins."""
        given = {"messages": messages, "add_generation_prompt": True} | ({"tools": tools} if tools else {})
        (text, error), (other, _) = self._rendered([{"tools": None, "documents": None} | given, given])
        if (text := other if text is None else text) is None:
            raise SwarmKVError(f"{self.model}: its chat template refuses these messages: {error}")
        return text

    def _rendered(self, chats: list[Any]) -> list[tuple[str | None, str]]:
        """A text and no error for each of the chats, or None and the error."""
        asked = json.dumps({"template": self.source, "chats": chats, "options": dict(self.options)})
        command = [sys.executable, "-P", renderer.__file__]
        try:
            done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=_WAIT_S)
            answer = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, ValueError) as error:
            raise SwarmKVError(
                f"{self.model}: its chat template was stopped: it needs more than {renderer.MOST_SECONDS} s or "
                f"{renderer.MOST_BYTES:,} bytes, or ended the process that renders it"
            ) from error
        if unknown := answer["unknown"]:
            raise SwarmKVError(
                f"{self.model}: its chat template knows no {', '.join(unknown)}: leave it out of chat_options"
            )
        return [(text, error) for text, error in answer["rendered"]]


def _joined(pieces: Sequence[str], texts: Sequence[str]) -> str:
    return "".join(itertools.chain(*itertools.zip_longest(pieces, texts, fillvalue="")))


def _chat(messages: Sequence[tuple[str, str]], absent: bool, parts: bool) -> dict[str, Any]:
    """What a template is given. absent: there are no tools, which most know as None, and some as not defined."""
    content: Any = (lambda text: [{"type": "text", "text": text}]) if parts else str
    said = [{"role": role, "content": content(text)} for role, text in messages]
    return {"messages": said, "add_generation_prompt": True} | ({} if absent else {"tools": None, "documents": None})
