"""The documents that agents read, and the questions that they ask of them."""

import json
from pathlib import Path

from swarmkv_lab.errors import SwarmKVError, did_you_mean
from swarmkv_lab.fanout.readers import text_of
from swarmkv_lab.files import DATA, open_regular, read_text, reason

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
    bundled = {path.stem: path for path in _FOLDER.glob("*.md")}
    if data is None:
        if name == "article":
            return ARTICLE_SENTENCE * ARTICLE_REPEATS
        try:
            with open_regular(bundled.get(str(name), name)) as file:
                data = file.read(_MOST_BYTES + 1)
        except FileNotFoundError as error:
            known = sorted([*bundled, "article"])
            what = f"{str(name)!r} is neither a file nor one of {', '.join(known)}{did_you_mean(name, known)}"
            raise SwarmKVError(f"document {what}") from error
        except OSError as error:
            raise SwarmKVError(f"{name} could not be read: {reason(error)}") from error
    if len(data) > _MOST_BYTES:
        raise SwarmKVError(f"{name} has more than {_MOST_BYTES:,} bytes, which is too much: cut it in parts")
    return text_of(data, str(name))


def load_agents(name: str = "dossier") -> dict[str, str]:
    """The prompts that come with a document, by the agents' names."""
    path = _FOLDER / f"{name}.agents.json"
    if not path.is_file():
        raise SwarmKVError(f"document {name!r} comes with no agents: pass prompts of your own")
    agents: dict[str, str] = json.loads(read_text(path))
    return agents
