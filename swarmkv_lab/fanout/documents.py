"""The documents that agents read, and the questions that they ask of them."""

import codecs
import io
import json
import logging
from pathlib import Path, PurePath

from swarmkv_lab.errors import SwarmKVError, did_you_mean
from swarmkv_lab.files import DATA, open_regular, read_text, reason

_FOLDER = DATA / "documents"
_MOST_BYTES = 100_000_000  # some tens of millions of tokens: no model reads more
_HTML = (".html", ".htm", ".xhtml")
SUFFIXES = (".txt", ".md", *_HTML, ".pdf")  # of these files' names, as a rule

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
    return _text_of(data, str(name))


def load_agents(name: str = "dossier") -> dict[str, str]:
    """The prompts that come with a document, by the agents' names."""
    path = _FOLDER / f"{name}.agents.json"
    if not path.is_file():
        raise SwarmKVError(f"document {name!r} comes with no agents: pass prompts of your own")
    agents: dict[str, str] = json.loads(read_text(path))
    return agents


def _text_of(data: bytes, name: str) -> str:
    """What a file says. Its name tells the kind, or its first bytes do; SwarmKVError for what is none of them."""
    suffix, start = PurePath(name).suffix.lower(), data.removeprefix(codecs.BOM_UTF8)[:256].lstrip().lower()
    is_pdf = suffix == ".pdf" or start.startswith(b"%pdf-")
    is_html = suffix in _HTML or start.startswith((b"<!doctype html", b"<html"))
    kind, read = ("PDF", _from_pdf) if is_pdf else ("HTML", _from_html) if is_html else ("text", _from_text)
    try:
        text = read(data) if data.strip() else ""
    except ImportError as error:
        raise SwarmKVError(f"{name}: {kind} needs the documents extra: pip install 'swarmkv-lab[documents]'") from error
    except Exception as error:  # a broken file may fail a reader anywhere, in its own words
        why = reason(error) or type(error).__name__
        raise SwarmKVError(f"{name} cannot be read as {kind}: {why}; save it as UTF-8 text, HTML or PDF") from error
    if not text.strip():
        raise SwarmKVError(f"{name} has no text: there is nothing to prefill (a scan, or a page that scripts write?)")
    return text


def _from_text(data: bytes) -> str:
    # Windows' editors begin a file with a mark, and so does whoever writes UTF-16.
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if b"\0" in data and not wide:
        raise ValueError("it holds bytes that no text has")
    return data.decode("utf-16" if wide else "utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def _from_html(data: bytes) -> str:
    import lxml.html
    from inscriptis import Inscriptis

    try:
        data.decode("utf-8")
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = None  # what the page itself says
    page = lxml.html.document_fromstring(data, lxml.html.HTMLParser(encoding=encoding, huge_tree=True))
    return str(Inscriptis(page).get_text())


def _from_pdf(data: bytes) -> str:
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # a broken file is one error, not a page of warnings
    reader = pypdf.PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):  # without a password for reading, the empty one opens it
        raise ValueError("it is encrypted: save a copy without its password")
    text = "\n\n".join(filter(None, (page.extract_text().strip() for page in reader.pages))).replace("\0", "")
    # Fonts may name halves of a character: two of them become one, and one alone a mark.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
