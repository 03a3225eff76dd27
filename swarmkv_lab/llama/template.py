"""Template: the words of a model's own chat template around what is said, which stays as it is.

The template sees a mark in place of each thing that is said: what it writes depends on a chat's form alone, so a form
is rendered once, and no document goes through the renderer.
"""

import json
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, product
from typing import Any

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama import renderer

Form = tuple[tuple[str, str, str, bool, int], ...]
"""of each message: its role, white space before and after its text, whether there is a text, how many calls of tools"""
_WAIT_S = 60  # for the renderer, which ends itself after MOST_SECONDS of work, on a machine that is busy
_KEPT = "Aa\n\n  \t<b>&amp;\"'\\n{{x}}{% y %}é中\U0001f600 z"  # what a template might escape, fold, strip or split


@dataclass(frozen=True)
class ChatTemplate:
    """A model's chat template and the variables that it is given; its errors name the model."""

    model: str
    source: str
    options: Mapping[str, Any]

    def around(self, form: Form, n_tools: int = 0) -> list[str | int]:
        """What the template writes for chats of a form, and between it the numbers of what is said.

        They count each message's text, the name and arguments of each of its calls, and last the tools. Raises
        SwarmKVError for a template that fails, or that changes, drops or repeats what is said.
        """
        secret, numbers = secrets.token_hex(8), count()

        def mark(end: str = "x") -> str:
            return f"{secret}{next(numbers)}{end}"

        messages: list[dict[str, Any]] = []
        for role, before, after, filled, n_calls in form:
            end = f"y{_KEPT}{secret}" if role in ("system", "user") else "x"  # others' words may stand in JSON
            messages.append({"role": role, "content": f"{before}{mark(end)}{after}" if filled else ""})
            functions = [{"name": mark(), "arguments": {mark(): 0}} for _ in range(n_calls)]
            called = [{"id": f"call{i}", "type": "function", "function": one} for i, one in enumerate(functions)]
            messages[-1] |= {"tool_calls": called} if called else {}
            messages[-1] |= {"tool_call_id": "call0"} if role == "tool" else {}
        tools = [{mark(): 0} for _ in range(n_tools)]
        in_parts = [one | {"content": [{"type": "text", "text": one["content"]}]} for one in messages]
        given = {"tools": tools} if tools else {}
        no_tools = {"tools": None, "documents": None}  # most know it as None, and some as not defined
        ways = product((no_tools, {}), (messages, in_parts))
        rendered = self._rendered([{**absent, **given, "messages": content} for absent, content in ways])
        a_mark = rf'\{{\s*"{secret}\d+x"\s*:\s*0\s*\}}|{secret}\d+(?:x|y{re.escape(_KEPT)}{secret})'
        expected = list(range(next(numbers)))
        for text, _ in rendered:
            found = re.split(f"({a_mark})", text or "")
            said = [int(re.split("[xy]", one.split(secret)[1])[0]) for one in found[1::2]]
            if text is not None and sorted(said) == expected and not any(secret in words for words in found[::2]):
                pieces: list[str | int] = [*found]
                pieces[1::2] = said
                return pieces
        roles = " and ".join(dict.fromkeys(role for role, *_ in form))
        reason = rendered[0][1] or "it changes, drops or repeats words"
        raise SwarmKVError(f"{self.model}: its chat template has no place for {roles}: {reason}")

    def _rendered(self, chats: list[dict[str, Any]]) -> list[tuple[str | None, str]]:
        """A text and no error for each of the chats, or None and the error."""
        whole = [{"add_generation_prompt": True, **chat} for chat in chats]
        asked = json.dumps({"template": self.source, "chats": whole, "options": dict(self.options)})
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
