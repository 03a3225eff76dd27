"""Grammar: what an answer may be, a JSON schema's values or calls of tools. llguidance says which tokens keep to it."""

import json
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.llamacpp import lltokenizer_from_vocab

from swarmkv_lab.errors import SwarmKVError, utf8
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import GREEDY, Sampler, Sampling

CALL, CALLED = "<tool_call>", "</tool_call>"
# Where JSON may have white space, one space at most; and no \u, which could write half a character.
_HOW = {"x-guidance": {"whitespace_pattern": " ", "coerce_one_of": True, "json_allowed_escapes": 'nrbtf\\"'}}
_NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}}
_vocabularies: WeakKeyDictionary[Model, tuple[LLTokenizer, np.ndarray]] = WeakKeyDictionary()


def grammar(schema: Any = None, tools: Mapping[str, Any] | None = None, parallel: bool = True) -> str:
    """Of an answer that is a value of a JSON schema, or calls of tools ({name: schema of the arguments}), or either."""
    ways = [] if schema is None else [_value(schema)]
    calls = []
    for name, arguments in (tools or {}).items():
        before, after = f'{CALL}\n{{"name": {_text(name)}, "arguments": ', f"}}\n{CALLED}"
        calls.append(f"{_text(before)} {_value(arguments, _NOTHING)} {_text(after)}")
    if calls:
        ways.append(r'call ("\n" call)*' if parallel else "call")
    return f"start: {' | '.join(ways)}\ncall: {' | '.join(calls) or _text('')}\n"


def _value(schema: Any, default: Mapping[str, Any] = {}) -> str:
    try:
        text = _text({**default, **schema, **_HOW})
        merged = '"allOf"' in text  # no part of it knows the others' properties
        return f"%json {text if merged else _text(json.loads(text, object_hook=_closed))}"
    except (TypeError, ValueError, RecursionError) as error:
        raise SwarmKVError(f"this JSON schema cannot be followed: {error}") from error


def _closed(part: dict[str, Any]) -> dict[str, Any]:
    """With the properties that are named alone, unless it says otherwise: as llama.cpp reads schemas."""
    return {"additionalProperties": False, **part} if isinstance(part.get("properties"), dict) else part


def _text(value: Any) -> str:
    return utf8("the schema", json.dumps(value, ensure_ascii=False)).decode()


class Constrained(Sampler):
    """Draws only what a grammar allows, and the end after it.

    Raises SwarmKVError for a schema that llguidance does not follow, such as one with a keyword that it does not know.
    """

    def __init__(self, model: Model, grammar: str, sampling: Sampling = GREEDY) -> None:
        super().__init__(sampling)
        if model not in _vocabularies:
            ends = np.array([token for token in range(model.n_vocab) if model.is_eog(token)], np.int32)
            with model._text_guard:
                _vocabularies[model] = lltokenizer_from_vocab(model._vocab), ends
        vocabulary, self._ends = _vocabularies[model]
        self._matcher = LLMatcher(vocabulary, grammar, log_level=0)
        if not self._allowed().any():
            _, refused, why = self._matcher.get_error().partition("\n")[0].rpartition("JSON schema: ")
            raise SwarmKVError(f"this JSON schema cannot be followed: {why if refused else 'no value fits it':.300}")

    def sample(self, logits: np.ndarray) -> int:
        """The next token id: the one drawn freely where that is allowed, which is cheap to ask."""
        token = super().sample(logits)
        ends = token in self._ends
        if not (self._matcher.is_accepting() if ends else self._matcher.validate_tokens([token])):
            allowed = self._allowed()
            if not allowed.any():
                raise SwarmKVError(f"the vocabulary has no token that keeps to the schema {self._matcher.get_error()}")
            token = super().sample(np.where(allowed, logits, np.float32(-np.inf)))
            ends = token in self._ends
        if not (ends or self._matcher.consume_token(token)):
            raise SwarmKVError(f"the schema could not be followed: {self._matcher.get_error():.300}")
        return token

    def _allowed(self) -> np.ndarray:
        """Whether each token may come next, bool (n_vocab,)."""
        mask = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8) > 0
        mask[self._ends] = self._matcher.is_accepting()
        return mask
