"""Grammar: what an answer may be, a JSON schema's values or calls of tools, in llama.cpp's notation (GBNF).

llama-cpp-python's converter is not used: its grammars allow what is no JSON, such as raw line ends.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from swarmkv_lab.errors import SwarmKVError, utf8, whole_number

CALL, CALLED = "<tool_call>", "</tool_call>"
_MOST = 200_000  # characters: llama.cpp reads a grammar again for each answer
_MOST_RULES = 20_000  # that it makes of repetitions, and parts of schemas, those that are merged counted each time
_KNOWN = {"$ref", "allOf", "anyOf", "oneOf", "type", "const", "enum", "properties", "required", "additionalProperties"}
_KNOWN |= {"items", "prefixItems", "minItems", "maxItems", "format", "minLength", "maxLength", "minimum", "maximum"}
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
object ::= "{" (string ":" ws value ("," ws string ":" ws value)*)? "}"
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
    parts, ways = _Parts(), []
    try:
        if schema is not None:
            ways.append(parts.of(schema, schema))
        if tools:
            calls = []
            for name, arguments in tools.items():
                given = parts.of(arguments, {"type": "object", "properties": {}} | arguments)
                calls.append(f'"{{\\"name\\": " {_literal(name)} ", \\"arguments\\": " {given} "}}"')
            call = parts.rule(f'"{CALL}\\n" {_one_of(calls)} "\\n{CALLED}"')
            ways.append(f'{call} ("\\n" {call})*' if parallel else call)
    except (TypeError, AttributeError, LookupError, ValueError, RecursionError) as error:
        raise SwarmKVError(f"this is no JSON schema that can be followed: {type(error).__name__}: {error}") from error
    rules = (f"{name} ::= {rule}\n" for name, rule in parts.rules.items())
    whole = f"root ::= {_one_of(ways)}\n{''.join(rules)}{_RULES}"
    if len(utf8("the schema", whole)) > _MOST:
        raise SwarmKVError(f"the schemas are too large: {len(whole):,} characters of grammar, of at most {_MOST:,}")
    return whole


class _Parts:
    """Expressions of a schema's parts, and numbered rules for what is referred to."""

    def __init__(self) -> None:
        self.rules: dict[str, str] = {}
        self.left = _MOST_RULES

    def of(self, whole: Any, part: Any) -> str:
        """What a value of a part of a whole schema looks like."""
        self.whole, self.refs = whole, dict[str, str]()
        return self.visit(part)

    def spend(self, n: int) -> None:
        self.left -= n
        if self.left < 0:
            raise ValueError(f"the schemas have more than {_MOST_RULES:,} parts and repetitions")

    def visit(self, schema: Any) -> str:
        self.spend(1)
        schema = {name: value for name, value in ({} if schema is True else schema).items() if name in _KNOWN}
        if (ref := schema.get("$ref")) is not None:
            if ref not in self.refs:
                self.refs[ref] = self.rule("")  # it may refer to itself
                self.rules[self.refs[ref]] = self.visit(self.found(schema))
            return self.refs[ref]
        if "const" in schema or "enum" in schema:
            return _one_of(map(_literal, [schema["const"]] if "const" in schema else schema["enum"]))
        for name in ("anyOf", "oneOf", "allOf"):
            if name in schema:
                some = schema.pop(name)
                ways = [some] if name == "allOf" else [[one] for one in some]
                return _one_of(self.visit(self.merged([schema, *way])) for way in ways)
        kind = schema.get("type")
        if isinstance(kind, list):
            return _one_of(self.visit(schema | {"type": one}) for one in kind)
        if kind == "object" or (kind is None and "properties" in schema):
            return f'"{{" {self.properties(schema)} "}}"'
        if kind == "array" or (kind is None and schema.keys() & {"items", "prefixItems"}):
            return f'"[" {self.items(schema)} "]"'
        if kind == "string":
            form, times = schema.get("format"), self.times(*_bounds(schema, "Length"))
            return f'"\\"" {_FORMATS.get(form, f"char{times}")} "\\""'
        if kind in ("integer", "number"):
            low, high = schema.get("minimum"), schema.get("maximum")
            if kind == "number":
                return "unit" if (low, high) == (0, 1) else "number"
            if low is not None and high is not None and 0 <= high - low < 1000:  # few enough to be written out
                return _one_of(f'"{n}"' for n in range(math.ceil(low), math.floor(high) + 1))
            return "natural" if low is not None and low >= 0 else "integer"
        if kind not in (None, "boolean", "null"):
            raise ValueError(f"type {kind!r:.40}")
        return kind or "value"

    def properties(self, schema: Any) -> str:
        known = dict.fromkeys(schema.get("required", []), True) | schema.get("properties", {})
        required = set(schema.get("required", []))
        if not known:
            more = schema.get("additionalProperties", "properties" not in schema)  # none is named: there is none
            return "" if more is False else self.listed(f'string ":" ws {self.visit(more)}')
        first, later = '""', '""'  # what is left to write: before the first property, and after it
        for name, value in reversed(known.items()):
            pair = self.rule(f'{_literal("" + name)} ":" ws {self.visit(value)}')
            alone, after = f"{pair} {later}", f'"," ws {pair} {later}'
            first = self.rule(alone if name in required else f"{alone} | {first}")
            later = self.rule(after if name in required else f"{after} | {later}")
        return first

    def items(self, schema: Any) -> str:
        if before := schema.get("prefixItems"):
            return ' "," ws '.join(map(self.visit, before))
        return self.listed(self.visit(schema.get("items", True)), *_bounds(schema, "Items"))

    def listed(self, item: str, least: int = 0, most: int | None = None) -> str:
        if most == 0:
            return ""
        item = self.rule(item)
        some = f'{item} ("," ws {item}){self.times(max(least - 1, 0), most and most - 1)}'
        return some if least else f"({some})?"

    def times(self, least: int, most: int | None) -> str:
        self.spend(most or least)
        return f"{{{least},{'' if most is None else most}}}"

    def rule(self, expression: str) -> str:
        """Its name."""
        name = f"r{len(self.rules)}"
        self.rules[name] = expression
        return name

    def merged(self, schemas: list[Any]) -> Any:
        """A schema of what all of them ask. One alone stays as it is: it may be a reference to what it is in."""
        asked = [one for one in schemas if one is not True and one != {}]
        if len(asked) == 1:
            return asked[0]
        whole: dict[str, Any] = {}
        for schema in map(self.found, asked):
            for name in schema.keys() & whole.keys() & {"properties", "required"}:
                both = whole[name], schema[name]
                schema = schema | {name: both[0] | both[1] if name == "properties" else [*both[0], *both[1]]}
            whole |= schema
        return whole

    def found(self, schema: Any) -> Any:
        """A schema, or the one that it refers to."""
        if "$ref" not in schema:
            return schema
        first, *path = schema["$ref"].split("/")
        if first != "#":
            raise ValueError(f"$ref {schema['$ref']!r:.80} is not in the schema itself")
        found = self.whole
        for step in path:
            found = found[step.replace("~1", "/").replace("~0", "~")]
        return found


def _bounds(schema: Any, of: str) -> tuple[int, int | None]:
    least, most = whole_number(f"min{of}", schema.get(f"min{of}", 0)), schema.get(f"max{of}")
    return least, None if most is None else whole_number(f"max{of}", most, least)


def _one_of(ways: Iterable[str]) -> str:
    if not (some := list(ways)):
        raise ValueError("there is nothing to choose from")
    return f"({' | '.join(some)})"


def _literal(value: Any) -> str:
    """A JSON value as the notation writes it."""
    text = json.dumps(value, ensure_ascii=False).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
