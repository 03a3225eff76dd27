"""A program of its own: renders a model's chat template in Jinja's sandbox. ``template`` runs it and reads the result.

A template comes with a model's file, from anybody. In a process of its own one that never ends, or fills the memory,
ends nobody's kernel. From stdin it takes a JSON object: template, chats (a list of lists of messages), options; to
stdout goes one too: unknown, the options that the template does not name, and rendered, a list of [text, error].
"""

import json
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_SECONDS = 10
MOST_BYTES = 1 << 30
MOST_TEXT = 1 << 20  # characters; the longest system prompt that is known has about 6,000


class Generation(Extension):
    """``{% generation %}`` marks an assistant's words, for those who train on them: here it does nothing."""

    tags = {"generation"}  # noqa: RUF012 as Jinja's own extensions have it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands between the tags, as it is."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(value: Any, **how: Any) -> str:
    """As templates expect it: no character is escaped for HTML, as Jinja's own filter does."""
    return json.dumps(value, **({"ensure_ascii": False} | how))


def rendered(template: str, chats: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    """What goes to stdout."""
    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    sandbox.filters["tojson"] = _tojson
    sandbox.globals["raise_exception"] = _raise_exception
    sandbox.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    try:
        named = {name.name for name in sandbox.parse(template).find_all(nodes.Name)}
        parsed = sandbox.from_string(template)
    except Exception as error:  # TemplateSyntaxError, and Python's own for what Jinja compiles to
        return {"unknown": [], "rendered": [[None, _in_words(error)]] * len(chats)}
    texts: list[tuple[str | None, str]] = []
    for given in chats:
        try:
            text = parsed.render(**given, **options)
            if len(text) > MOST_TEXT:
                raise TemplateError(f"it gives more than {MOST_TEXT:,} characters")
            texts.append((text, ""))
        except Exception as error:  # whatever a template's expressions raise
            texts.append((None, _in_words(error)))
    return {"unknown": sorted(options.keys() - named - {"bos_token", "eos_token"}), "rendered": texts}


def _in_words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


if __name__ == "__main__":
    with suppress(ImportError, OSError, ValueError):  # Windows has no limits; a lower one that is set already may stay
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    json.dump(rendered(**json.load(sys.stdin)), sys.stdout)  # ASCII, whatever the terminal's encoding
