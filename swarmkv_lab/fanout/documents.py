"""The documents that agents read, and the questions that they ask of them."""

import json
import os
from pathlib import Path

from swarmkv_lab.errors import SwarmKVError, did_you_mean
from swarmkv_lab.fanout.readers import text_of
from swarmkv_lab.files import DATA, open_regular, read_text, reason, user_path

_FOLDER = DATA / "documents"
_MOST_BYTES = 100_000_000  # some tens of millions of tokens: no model reads more

# The article repeats one sentence. This one is ours, of 20 SmolLM2 tokens: 175 times are 3,500, and 400 are enough
# to cut the article's 3,501 from, or a deeper document.
ARTICLE_SENTENCE = " The shared cache holds every key and value of the document, and each agent reads from its end."
ARTICLE_REPEATS = 400


def load_document(name: str | Path, data: bytes | None = None) -> str:
    """The text of a document: "dossier", "article" (one sentence repeated), or any text, Markdown, HTML or PDF file.

    name: or the path of the file. data: the file's bytes, where they come from elsewhere, as an upload's do. HTML and
    PDF need the extra ``documents``. Raises SwarmKVError for a file that is none of these, too large, or without text.
    """
    if data is None and name == "article":
        return ARTICLE_SENTENCE * ARTICLE_REPEATS
    if data is None:
        bundled = _FOLDER / f"{name}.md"
        data = _bytes(bundled if os.path.isfile(bundled) else name)
    if len(data) > _MOST_BYTES:
        raise SwarmKVError(f"{name} has more than {_MOST_BYTES:,} bytes, which is too much: cut it in parts")
    return text_of(data, str(name))


def _bytes(path: str | Path) -> bytes:
    """A file's bytes, one more than are allowed at most."""
    if os.path.isdir(user_path(path)):
        raise SwarmKVError(f"{path} is a folder: name one of the files in it")
    try:
        with open_regular(path) as file:
            return file.read(_MOST_BYTES + 1)
    except FileNotFoundError as error:
        known = sorted([*(p.stem for p in _FOLDER.glob("*.md")), "article"])
        what = f"{str(path)!r} is neither a file nor one of {', '.join(known)}{did_you_mean(path, known)}"
        raise SwarmKVError(f"document {what}") from error
    except OSError as error:
        raise SwarmKVError(f"{path} could not be read: {reason(error)}") from error


def load_agents(name: str = "dossier") -> dict[str, str]:
    """The prompts that come with a document, by the agents' names."""
    path = _FOLDER / f"{name}.agents.json"
    if not os.path.isfile(path):
        raise SwarmKVError(f"document {name!r} comes with no agents: pass prompts of your own")
    agents: dict[str, str] = json.loads(read_text(path))
    return agents
