"""Grammar: what an answer may be, a JSON schema's values or calls of tools. llguidance says which tokens keep to it."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any
from urllib.parse import quote
from weakref import WeakKeyDictionary

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.llamacpp import lltokenizer_from_vocab

from swarmkv_lab.errors import SwarmKVError, utf8
from swarmkv_lab.llama import grammar_check
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import GREEDY, Sampler, Sampling
from swarmkv_lab.llama.words import on_large_stack

CALL, CALLED = "<tool_call>", "</tool_call>"
# Where JSON may have white space, one space at most; and no \u, which could write half a character.
_HOW = {"x-guidance": {"whitespace_pattern": " ", "coerce_one_of": True, "json_allowed_escapes": 'nrbtf\\"'}}
_UNWRITABLE = re.compile(r"(?<!\\)(?:\\\\)*\\u|\x7f")  # JSON of characters that only \u can write
_ABOUT = {"type", "title", "description", "$schema", "strict"}
_VALUES = ("const", "enum", "default", "examples")
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
_MOST = 1 << 17  # characters; of a value of 400,000 one step took 0.7 s
_WAIT_S = 10  # for the check, which ends itself sooner, on a machine that is busy
_STACK = 1 << 26
_vocabularies: WeakKeyDictionary[Model, LLTokenizer] = WeakKeyDictionary()


class SchemaError(SwarmKVError):
    """A schema that cannot be followed, or not by this model's tokens."""


def grammar(schema: Any = None, tools: Mapping[str, Any] | None = None, parallel: bool = True) -> str:
    """Of an answer that is a value of a JSON schema, or calls of tools ({name: schema of the arguments}), or either.

    Objects have the properties that are named alone, unless their schema says otherwise, as llama.cpp reads schemas;
    what oneOf lists is anyOf; formats that llguidance does not know are not held to. Raises SchemaError.
    """
    ways = [] if schema is None else [_value(schema)]
    calls = []
    for name, arguments in (tools or {}).items():
        before, after = f'{CALL}\n{{"name": {_text(name)}, "arguments": ', f"}}\n{CALLED}"
        calls.append(f"{_text(before)} {_value(arguments, of_tool=True)} {_text(after)}")
    if calls:
        ways.append(r'call ("\n" call)*' if parallel else "call")
    whole = f"start: {' | '.join(ways)}\ncall: {' | '.join(calls) or _text('')}\n"
    if len(whole) > _MOST:
        raise SchemaError(f"the schemas have {len(whole):,} characters, of at most {_MOST:,}")
    return whole


def _value(schema: Any, of_tool: bool = False) -> str:
    try:
        whole = {**({"type": "object"} if of_tool else {}), **schema, **_HOW}
        if of_tool and whole["type"] != "object":
            raise ValueError("a tool's arguments are an object")
        if of_tool and not schema.keys() - _ABOUT:
            whole["properties"] = {}
        return f"%json {_text(_prepared(whole, not _extends(whole)))}"
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise SchemaError(f"this JSON schema cannot be followed: {error}") from error


def _extends(part: Any) -> bool:
    """Whether parts of a schema add to others' properties: none can be closed then, as none knows them all."""
    if isinstance(part, list):
        return any(map(_extends, part))
    if not isinstance(part, dict):
        return False
    adds = "allOf" in part or ("properties" in part and part.keys() & {"$ref", "anyOf", "oneOf"})
    return bool(adds) or any(map(_extends, part.values()))


def _prepared(part: Any, closed: bool) -> Any:
    """A schema as llguidance takes it. closed: objects have no other properties than those that they name."""
    if isinstance(part, list):
        return [_prepared(one, closed) for one in part]
    if not isinstance(part, dict):
        return part
    found: dict[str, Any] = {}
    for name, value in part.items():
        if name in _VALUES:
            if name in ("const", "enum") and _UNWRITABLE.search(json.dumps(value, ensure_ascii=False)):
                raise ValueError(f"{name} has control characters")
            found[name] = value
        elif name in _BY_NAME and isinstance(value, dict):
            found[name] = {key: _prepared(one, closed) for key, one in value.items()}
        elif name == "$ref" and isinstance(value, str):
            found[name] = quote(value, safe="#/%~:?&=$!*'()+,;@")
        elif name != "format" or value in _FORMATS:
            found[name] = _prepared(value, closed)
    named = found.get("properties")
    if closed and isinstance(named, dict) and not set(found.get("required", [])) - named.keys():
        found.setdefault("additionalProperties", False)
    return found


def _text(value: Any) -> str:
    return utf8("the schema", json.dumps(value, ensure_ascii=False)).decode()


@lru_cache(256)
def _verdict(grammar: str) -> str:
    """SOUND, or what is wrong with a grammar: whether it compiles at all is tried in a process of its own."""
    command = [sys.executable, "-P", grammar_check.__file__]
    try:
        done = subprocess.run(command, input=grammar.encode(), capture_output=True, timeout=_WAIT_S)
    except subprocess.TimeoutExpired as error:  # not remembered: another time the machine is less busy
        raise SchemaError("this JSON schema cannot be followed: it takes too long") from error
    return done.stdout.decode() or "it is too large or too deep"  # it has died, and said nothing


class Constrained(Sampler):
    """Draws only what a grammar allows, and the end after it. Raises SchemaError where that cannot be done."""

    def __init__(self, model: Model, grammar: str, sampling: Sampling = GREEDY) -> None:
        super().__init__(sampling)
        if (why := _verdict(grammar)) != grammar_check.SOUND:
            why = "no value fits it" if why == "NoExtensionBias" else why.rpartition("JSON schema: ")[2]
            raise SchemaError(f"this JSON schema cannot be followed: {why:.300}")
        if model not in _vocabularies:
            with model._text_guard:
                _vocabularies[model] = lltokenizer_from_vocab(model._vocab)
        self._ends = model.ends
        how = partial(LLMatcher, _vocabularies[model], grammar, log_level=0, limits=grammar_check.LIMITS)
        self._matcher = on_large_stack(how, _STACK)

    def sample(self, logits: np.ndarray) -> int:
        """The next token id: the one drawn freely where that is allowed, which is cheap to ask."""
        token = super().sample(logits)
        if not self._takes(token):
            allowed = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8) > 0
            allowed[list(self._ends)] = self._matcher.is_accepting()
            if not allowed.any():
                raise SchemaError(f"no token keeps to the schema here: {self._why}")
            token = super().sample(np.where(allowed, logits, np.float32(-np.inf)))
            if not self._takes(token):
                raise SchemaError(f"the schema could not be followed: {self._why}")
        return token

    @property
    def _why(self) -> str:
        return self._matcher.get_error().partition("\n")[0]

    def _takes(self, token: int) -> bool:
        """Go on by a token, if it is allowed."""
        if token in self._ends:
            return bool(self._matcher.is_accepting())
        return self._matcher.try_consume_tokens([token]) == 1
