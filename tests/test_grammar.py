"""Grammars of schemas and tools: whatever a model draws from them is JSON of that schema."""

import json
from contextlib import suppress
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter

import swarmkv_lab as lab
from swarmkv_lab.llama import grammar_check
from swarmkv_lab.llama.grammar import CALL, CALLED, Constrained, SchemaError, _verdict, grammar
from swarmkv_lab.llama.sampling import Sampling

SCHEMAS = [
    {"enum": ["é", 'quote " and \\ and\nline', 3, None, {"a": ["x"]}]},
    {"type": "object", "properties": {"root": {"type": "boolean"}, "string": {"type": "null"}}, "required": ["string"]},
    {"type": "array", "items": {"type": "integer", "minimum": 2, "maximum": 5}, "minItems": 1, "maxItems": 3},
    {"$ref": "#/$defs/char", "$defs": {"char": {"type": "array", "items": {"$ref": "#/$defs/char"}, "maxItems": 1}}},
    {"anyOf": [{"type": "null"}, {"type": ["boolean", "null"]}, {"allOf": [{"const": 1}]}]},
    {"type": "object", "properties": {"n": {"type": "number", "minimum": 0, "maximum": 1}, "d": {"format": "date"}}},
    {"type": "object", "additionalProperties": False},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "format": "date-time"},
    {"type": "string", "pattern": "^[a-c]{2,3}$", "format": "unknown"},
    {"const": {"properties": {"a": 1}}},
    {"$ref": "#/$defs/Größe", "$defs": {"Größe": {"enum": ["é"]}}},
    {"type": "integer", "exclusiveMinimum": -8, "maximum": 40, "multipleOf": 7},
    {"allOf": [{"required": [n], "properties": {n: {"const": n}}} for n in "ab"], "type": "object", "maxProperties": 2},
    {"prefixItems": [{"const": "a"}, {"type": "boolean"}], "type": "array"},
]


NODE = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}
SCHEMAS.append({"$ref": "#/$defs/node", "$defs": {"node": NODE}})


def drawn(model, gbnf, rng, most=300):
    """A text that a model without sense draws, and whether it came to its end. Quotes and brackets are likelier."""
    sampler = Constrained(model, gbnf, Sampling(1.0, 0, 1.0, 0.0, int(rng.integers(1 << 30))))
    if not LIKELY:
        LIKELY.update({token: model.detokenize([token], special=True) for token in range(model.n_vocab)})
    ends = np.array([9.0 if text[:1] in ("]", "}", '"') or model.is_eog(t) else 0.0 for t, text in LIKELY.items()])
    tokens = []
    for _ in range(most):
        token = sampler.sample((rng.normal(size=model.n_vocab) + ends).astype(np.float32))
        if model.is_eog(token):
            return model.detokenize(tokens), True
        tokens.append(token)
    return model.detokenize(tokens), False


LIKELY = {}


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: next(iter(schema)))
def test_what_is_drawn_is_of_the_schema(speaker, rng, schema):
    for _ in range(2):
        text, ended = drawn(speaker, grammar(schema), rng)
        assert ended
        Draft202012Validator(schema).validate(json.loads(text))


class Mood(Enum):
    GLAD, SAD = 'gl"ad', "s\\ad\n"


class Part(BaseModel):
    name: Literal["a", "é"] = "a"
    parts: Annotated[list["Part"], Field(max_length=1)] = []
    space: bool


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    weight: Annotated[float, Field(ge=0, le=1)] | None


class Empty(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Report(BaseModel):
    """With what people's models have."""

    model_config = ConfigDict(extra="forbid")
    moods: Annotated[list[Mood], Field(min_length=1, max_length=2)]
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    one_of: bool | None
    char: Part | None = None
    count: NonNegativeInt
    nothing: Empty
    when: date | None = Field(default=None, description="a day")
    pair: tuple[bool, Literal[1]]
    by_name: Annotated[dict[str, bool], Field(max_length=3)] = {}


@pytest.mark.parametrize("model", [Report, Part, Empty, Mood, Cat | Dog | None, list[bool]], ids=str)
def test_what_pydantic_asks_it_takes(speaker, rng, model):
    adapter = TypeAdapter(model)
    for _ in range(2):
        text, ended = drawn(speaker, grammar(adapter.json_schema()), rng)
        if ended:
            adapter.validate_json(text)
        else:
            assert model in (Report, list[bool])  # whose lists and names have no end


def test_calls_of_tools(speaker, rng):
    tools = {"a-b": {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"]}, "c": {}}
    for _ in range(2):
        text, ended = drawn(speaker, grammar(None, tools, parallel=False), rng)
        if ended:
            assert text.startswith(CALL)
            assert text.endswith(CALLED)
            call = json.loads(text.removeprefix(CALL).removesuffix(CALLED))
            assert call["name"] in tools
            assert isinstance(call["arguments"], dict)
    nodes = TypeAdapter(Part).json_schema()  # which begins with a $ref
    more = {"properties": {"a": {}}, "required": ["a", "b"]}
    for arguments in (nodes, more, {"anyOf": [more, {"required": ["x"]}]}, {"required": ["x"]}, {"type": "object"}):
        Constrained(speaker, grammar(None, {"f": arguments}))
    with pytest.raises(lab.SwarmKVError):
        grammar(None, {"f": {"type": "string"}})
    either = grammar({"const": 5}, {"f": {}})
    assert either.startswith("start: ")
    Constrained(speaker, either)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "items", "$ref", "anyOf", "enum", "properties", "required", "minItems", "x"])
            | st.text(),
            values | st.sampled_from(["object", "array", "string", "integer", "#"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(JSON)
def test_what_is_no_schema_is_refused_and_nothing_else_happens(speaker, schema):
    with suppress(lab.SwarmKVError):
        Constrained(speaker, grammar({} if schema is None else schema, {"f": schema}))


TWICE = {f"{n + 1}": {"type": "object", "anyOf": [{"$ref": f"#/$defs/{n}"}] * 2} for n in range(30)} | {"0": {}}
CHAIN = {f"{n}": {"type": "array", "items": {"$ref": f"#/$defs/{n + 1}"}} for n in range(20_000)} | {"20000": {}}
SHORTER = {name: CHAIN[name] for name in map(str, range(2_000))} | {"2000": {}}  # it overflows a usual stack
DEEP = {"type": "null"}
for _ in range(5000):
    DEEP = {"type": "array", "items": DEEP}


def test_a_long_chain_ends_nobodys_process(speaker, monkeypatch):
    long = grammar({"$ref": "#/$defs/0", "$defs": SHORTER})
    Constrained(speaker, long)
    _verdict.cache_clear()
    monkeypatch.setattr(grammar_check, "__file__", str(Path(__file__).with_name("none.py")))  # it dies without a word
    with pytest.raises(SchemaError):
        Constrained(speaker, long)
    _verdict.cache_clear()


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        {"$ref": "https://example.com/schema"},
        {"enum": []},
        {"anyOf": []},
        {"$ref": 5},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"type": "array", "minItems": 1.5},
        {"type": "object", "required": [5]},
        {"type": "object", "properties": ["a"]},
        {"type": ["string", {}]},
        {"type": "char"},
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        {"const": "a\u0001b"},
        {"const": "x" * 200_000},
        {"type": "integer", "multipleOf": 999_983},  # seconds and hundreds of megabytes
        {"allOf": [{"type": "string", "pattern": f"a.{{{i}}}b"} for i in range(60)]},
        {"$ref": "#/$defs/0", "$defs": CHAIN},
        {"type": "string", "pattern": "^(?!a)b"},
        {"type": "integer", "minimum": "1"},
        {"const": "\ud800"},
        5,
        DEEP,
        {"$ref": "#/$defs/30", "$defs": TWICE},
    ],
)
def test_refused(speaker, schema):
    with pytest.raises(lab.SwarmKVError):
        Constrained(speaker, grammar(schema))
