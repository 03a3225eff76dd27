"""The documents that agents read, and the questions that they ask of them."""

import json
import os
from pathlib import Path

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.files import DATA, read_text, user_path

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
    path = bundled if os.path.isfile(bundled) else user_path(name)
    if not os.path.isfile(path):
        known = ", ".join(sorted([*(p.stem for p in _FOLDER.glob("*.md")), "article"]))
        raise SwarmKVError(f"document {str(name)!r} is neither a file nor one of {known}")
    text = read_text(path)
    if not text.strip():
        raise SwarmKVError(f"{path.name} is empty: there is nothing to prefill")
    return text


def load_agents(name: str = "dossier") -> dict[str, str]:
    """The prompts that come with a document, by the agents' names."""
    path = _FOLDER / f"{name}.agents.json"
    if not os.path.isfile(path):
        raise SwarmKVError(f"document {name!r} comes with no agents: pass prompts of your own")
    agents: dict[str, str] = json.loads(read_text(path))
    return agents
