"""The documents that agents read, and the questions that they ask of them."""

import json
from pathlib import Path

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.files import DATA

_FOLDER = DATA / "documents"

# The article repeats one sentence. This one is ours, of 20 SmolLM2 tokens: 175 times are 3,500, and 400 are enough
# to cut the article's 3,501 from, or a deeper document.
ARTICLE_SENTENCE = " The shared cache holds every key and value of the document, and each agent reads from its end."
ARTICLE_REPEATS = 400


def load_document(name: str | Path) -> str:
    """The text of a document: "dossier", "article" (one sentence repeated), or the path of any UTF-8 file."""
    if name == "article":
        return ARTICLE_SENTENCE * ARTICLE_REPEATS
    bundled = _FOLDER / f"{name}.md"
    path = bundled if bundled.is_file() else Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(sorted([*(p.stem for p in _FOLDER.glob("*.md")), "article"]))
        raise SwarmKVError(f"document {str(name)!r} is neither a file nor one of {known}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SwarmKVError(f"{path.name} is not UTF-8: {error.reason} at byte {error.start}") from error
    if not text.strip():
        raise SwarmKVError(f"{path.name} is empty: there is nothing to prefill")
    return text


def load_agents(name: str = "dossier") -> dict[str, str]:
    """The prompts that come with a document, by the agents' names."""
    path = _FOLDER / f"{name}.agents.json"
    if not path.is_file():
        raise SwarmKVError(f"document {name!r} comes with no agents: pass prompts of your own")
    agents: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return agents
