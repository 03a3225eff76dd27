"""Grammar: what an answer may be, a JSON schema's values or calls of tools, in llama.cpp's notation (GBNF)."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from swarmkv_lab.errors import SwarmKVError

CALL, CALLED = "<tool_call>", "</tool_call>"
_MOST = 200_000  # characters: llama.cpp reads a grammar again for each answer
_COUNTED = 1000  # integers between two bounds, to write out
_NOTES = {
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "discriminator",
    "$defs",
    "definitions",
    "$schema",
}
_RULES = r"""
ws ::= " "?
hex ::= [0-9a-fA-F]
char ::= [^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" ([0-9a-cA-CefEF] hex{3} | [dD] [0-7] hex{2}))
string ::= "\"" char* "\""
natural ::= "0" | [1-9] [0-9]{0,15}
integer ::= "-"? natural
number ::= integer ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?
unit ::= "0" ("." [0-9]{1,15})? | "1" ("." "0")?
boolean ::= "true" | "false"
null ::= "null"
pair ::= string ":" ws value
object ::= "{" (pair ("," ws pair)*)? "}"
array ::= "[" (value ("," ws value)*)? "]"
value ::= object | array | string | number | boolean | null
date ::= [0-9] [0-9] [0-9] [1-9] "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])
time ::= ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] "Z"
uuid ::= hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}
"""
_FORMATS = {"date": "date", "time": "time", "date-time": 'date "T" time', "uuid": "uuid"}


def grammar(schema: Any = None, tools: Mapping[str, Any] | None = None, parallel: bool = True) -> str:
    """Of an answer that is a value of a JSON schema, or calls of tools ({name: schema of the arguments}), or either.

    Patterns, most bounds of numbers, lengths above 2,000 and formats but dates and UUIDs are not held to.
    Raises SwarmKVError for what is no schema, or cannot be followed.
    """
    rules, ways = dict[str, str](), []
    try:
        if schema is not None:
            ways.append(_Schema(schema, rules, "s").visit(schema))
        if tools:
            calls = []
            for i, (name, arguments) in enumerate(tools.items()):
                given = _Schema(arguments, rules, f"t{i}-").visit({"type": "object"} | arguments)
                opens = _literal('{"name": ' + json.dumps(name) + ', "arguments": ')
                calls.append(f'{opens} {given} "}}"')
            rules["call"] = f'"{CALL}\\n" ({" | ".join(calls)}) "\\n{CALLED}"'
            ways.append('call ("\\n" call)*' if parallel else "call")
    except (TypeError, AttributeError, KeyError, IndexError, ValueError, RecursionError) as error:
        raise SwarmKVError(f"this is no JSON schema that can be followed: {type(error).__name__}: {error}") from error
    whole = "\n".join([f"root ::= {' | '.join(ways)}", *(f"{name} ::= {rule}" for name, rule in rules.items()), _RULES])
    if len(whole) > _MOST:
        raise SwarmKVError(f"the schemas are too large: their grammar has {len(whole):,} characters, at most {_MOST:,}")
    return whole


class _Schema:
    """Expressions of a schema's parts, and rules for what it refers to."""

    def __init__(self, whole: Any, rules: dict[str, str], prefix: str) -> None:
        self.whole, self.rules, self.prefix = whole, rules, prefix
        self.refs: dict[str, str] = {}

    def rule(self, expression: str) -> str:
        name = f"{self.prefix}{len(self.rules)}"
        self.rules[name] = expression
        return name

    def visit(self, schema: Any) -> str:
        """What a value of it looks like."""
        schema = {} if schema is True else {name: value for name, value in schema.items() if name not in _NOTES}
        if "$ref" in schema:
            return self.ref(schema["$ref"])
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return self.one_of([_literal(json.dumps(value, ensure_ascii=False)) for value in values])
        for name in ("anyOf", "oneOf"):
            if name in schema:
                rest, some = {other: schema[other] for other in schema.keys() - {name}}, schema[name]
                return self.one_of([self.visit(_merged([rest, self.found(one)]) if rest else one) for one in some])
        if "allOf" in schema:
            rest, some = {other: schema[other] for other in schema.keys() - {"allOf"}}, schema["allOf"]
            return self.visit(some[0] if len(some) == 1 and not rest else _merged([rest, *map(self.found, some)]))
        kind = schema.get("type")
        if isinstance(kind, list):
            return self.one_of([self.visit(schema | {"type": one}) for one in kind])
        if kind == "object" or (kind is None and "properties" in schema):
            return self.object(schema)
        if kind == "array" or (kind is None and "items" in schema):
            return self.array(schema)
        if kind == "string":
            if (form := schema.get("format")) in _FORMATS:
                return f'"\\"" {_FORMATS[form]} "\\""'
            least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
            times = "*" if most is None and not least else f"{{{least},{'' if most is None else int(most)}}}"
            return f'"\\"" char{times} "\\""'
        if kind in ("integer", "number"):
            low, high = schema.get("minimum"), schema.get("maximum")
            if kind == "number":
                return "unit" if (low, high) == (0, 1) else "number"
            if low is not None and high is not None and 0 <= high - low < _COUNTED:
                return self.one_of([f'"{n}"' for n in range(int(low), int(high) + 1)])
            return "natural" if low is not None and low >= 0 else "integer"
        if kind in ("boolean", "null"):
            return str(kind)
        if kind is None:
            return "value"
        raise ValueError(f"type {kind!r:.40}")

    def ref(self, ref: str) -> str:
        if ref not in self.refs:
            self.refs[ref] = self.rule("")  # it may refer to itself
            self.rules[self.refs[ref]] = self.visit(self.found({"$ref": ref}))
        return self.refs[ref]

    def found(self, schema: Any) -> Any:
        """A schema, or the one that it refers to."""
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            return {} if schema is True else schema
        first, *path = schema["$ref"].split("/")
        if first != "#":
            raise ValueError(f"$ref {schema['$ref']!r:.80} is not in the schema itself")
        found = self.whole
        for step in path:
            found = found[step.replace("~1", "/").replace("~0", "~")]
        return found

    def one_of(self, ways: Sequence[str]) -> str:
        if not ways:
            raise ValueError("there is nothing to choose from")
        return f"({' | '.join(ways)})"

    def object(self, schema: Any) -> str:
        known, required = dict(schema.get("properties", {})), schema.get("required", [])
        known |= {name: {} for name in required if name not in known}
        if not known:
            more = schema.get("additionalProperties", True)
            if more is False:
                return '"{}"'
            pair = f'string ":" ws {self.visit(more)}'
            return f'"{{" ({pair} ("," ws {pair})*)? "}}"'
        first, later = '""', '""'  # what follows a property, if none was written yet, and if one was
        for name, value in reversed(known.items()):
            pair = f'{_literal(json.dumps(name, ensure_ascii=False))} ":" ws {self.visit(value)}'
            if name in required:
                first, later = self.rule(f"{pair} {later}"), self.rule(f'"," ws {pair} {later}')
            else:
                first, later = self.rule(f"{pair} {later} | {first}"), self.rule(f'"," ws {pair} {later} | {later}')
        return f'"{{" {first} "}}"'

    def array(self, schema: Any) -> str:
        before = [self.visit(one) for one in schema.get("prefixItems", [])]
        if before:
            listed = ' "," ws '.join(before)
            return f'"[" {listed} "]"'
        item = self.rule(self.visit(schema.get("items", {})))
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        if most is not None and int(most) == 0:
            return '"[]"'
        times = f"{{{max(least - 1, 0)},{'' if most is None else int(most) - 1}}}"
        some = f'{item} ("," ws {item}){times}'
        return f'"[" {some} "]"' if least else f'"[" ({some})? "]"'


def _merged(schemas: Sequence[Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for schema in schemas:
        both: dict[str, Any] = {}
        if "properties" in whole and "properties" in schema:
            both["properties"] = whole["properties"] | schema["properties"]
        if "required" in whole and "required" in schema:
            both["required"] = [*whole["required"], *schema["required"]]
        whole |= dict(schema) | both
    return whole


def _literal(text: str) -> str:
    """A text as the notation writes it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
