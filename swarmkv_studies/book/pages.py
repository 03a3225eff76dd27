"""Web pages: Jinja's templates lie in templates/, and each becomes one file, with its style in it."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"
_PAGES = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_PAGES.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # short, and in our own order


def page(name: str, **content: Any) -> str:
    """The HTML of a page; name: its template's, content: what the template asks for."""
    return _PAGES.get_template(name).render(content)
