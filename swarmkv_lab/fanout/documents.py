"""The documents that agents read, and the questions that they ask of them."""

import codecs
import io
import json
import warnings
from pathlib import Path, PurePath

from swarmkv_lab.errors import SwarmKVError, not_one_of
from swarmkv_lab.files import DATA, open_regular, read_text, reason

_FOLDER = DATA / "documents"
_MOST_BYTES = 100_000_000  # some tens of millions of tokens: no model reads more
_KINDS = {".txt": "text", ".md": "text", ".html": "HTML", ".htm": "HTML", ".pdf": "PDF"}
SUFFIXES = tuple(_KINDS)  # of these files' names, as a rule
_BLOCKS = (
    "table", "thead", "tbody", "tfoot", "tr", "section", "nav", "form", "fieldset", "details", "summary",
    "dl", "dt", "dd", "hr", "option", "legend",
)  # fmt: skip  # on lines of their own, which inscriptis does not know
_OTHERS = b"PK\3\4", b"{\\rtf", b"%!PS"  # which may pass for text; pictures and Office's older files do not

# The article repeats one sentence. This one is ours, of 20 SmolLM2 tokens: 175 times are 3,500, and 400 are enough
# to cut the article's 3,501 from, or a deeper document.
ARTICLE_SENTENCE = " The shared cache holds every key and value of the document, and each agent reads from its end."
ARTICLE_REPEATS = 400


def load_document(name: str | Path, data: bytes | None = None) -> str:
    """The text of a document: "dossier", "article" (one sentence repeated), or any text, Markdown, HTML or PDF file.

    name: or the path of the file. data: the file's bytes, where they come from elsewhere, as an upload's do. HTML and
    PDF, known by their names or first bytes, need the extra ``documents``. Warns of a PDF's pages without text. Raises
    SwarmKVError for a file that is none of these, encrypted, damaged, too large, without text, or not in UTF-8.
    """
    if data is None and name == "article":
        return ARTICLE_SENTENCE * ARTICLE_REPEATS
    data = _bytes_of(name) if data is None else data
    if len(data) > _MOST_BYTES:
        raise SwarmKVError(f"{name} has more than {_MOST_BYTES:,} bytes, which is too much: cut it in parts")
    start, named = data[:64].lstrip().lower(), _KINDS.get(PurePath(name).suffix.lower(), "text")
    kind = "PDF" if start.startswith(b"%pdf-") else "HTML" if start.startswith((b"<!doctype html", b"<html")) else named
    try:
        if data.startswith(_OTHERS):
            raise ValueError("it is an Office, zip, RTF or PostScript file")
        text = {"PDF": _from_pdf, "HTML": _from_html, "text": _from_text}[kind](data) if data.strip() else ""
    except ImportError as error:
        raise SwarmKVError(f"{name}: {kind} needs the documents extra: pip install 'swarmkv-lab[documents]'") from error
    except Exception as error:  # a broken file may fail a reader anywhere, in its own words
        why = reason(error) or type(error).__name__
        raise SwarmKVError(f"{name} cannot be read as {kind}: {why}; save it as UTF-8 text, HTML or PDF") from error
    if not any(map(str.isprintable, text.replace(" ", ""))):  # nor are marks, and spaces without a width
        raise SwarmKVError(f"{name} has no text: there is nothing to prefill (a scan, or a page that scripts write?)")
    return text


def _bytes_of(name: str | Path) -> bytes:
    """The bytes of a document that comes with the lab, or of a file."""
    bundled = {path.stem: path for path in _FOLDER.glob("*.md")}
    try:
        with open_regular(bundled.get(str(name), name)) as file:
            return file.read(_MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise SwarmKVError(f"document {not_one_of(str(name), [*bundled, 'article'])}, and no file") from error
    except OSError as error:
        raise SwarmKVError(f"{name} could not be read: {reason(error)}") from error


def load_agents(name: str = "dossier") -> dict[str, str]:
    """The prompts that come with a document, by the agents' names."""
    path = _FOLDER / f"{name}.agents.json"
    if not path.is_file():
        raise SwarmKVError(f"document {name!r} comes with no agents: pass prompts of your own")
    agents: dict[str, str] = json.loads(read_text(path))
    return agents


def _from_text(data: bytes) -> str:
    # Windows' editors begin a file with a mark, and so does whoever writes UTF-16. No encoding is guessed.
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if wide else "utf-8-sig")
    if "\0" in text or "\x1b$" in text:  # UTF-32 begins as UTF-16 does; Japanese mail (ISO 2022) hides in ASCII
        raise ValueError("it holds characters that no text has")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _from_html(data: bytes) -> str:
    import lxml.html
    from inscriptis import Inscriptis
    from inscriptis.css_profiles import STRICT_CSS_PROFILE
    from inscriptis.model.config import ParserConfig

    parser = lxml.html.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
    page = lxml.html.document_fromstring(_from_text(data).encode(), parser)
    for part in [*page.iter("script", "style", "template", "noscript", "iframe")]:
        part.clear(keep_tail=True)
    # A line for each row, and tabs between its cells: padded to columns, they would need memory without a bound.
    for part in page.iter("td", "th"):
        part.tag, part.tail = "span", "\t"
    for part in page.iter(*_BLOCKS):
        part.tag = "div"
    return str(Inscriptis(page, ParserConfig(STRICT_CSS_PROFILE)).get_text())


def _from_pdf(data: bytes) -> str:
    import pypdf

    texts = [page.extract_text().strip("\ufffd \n") for page in pypdf.PdfReader(io.BytesIO(data)).pages]
    scans = [number for number, text in enumerate(texts, 1) if not text]
    if scans and any(texts):
        warnings.warn(f"{len(scans)} of a PDF's {len(texts)} pages have no text, first {scans[0]}", stacklevel=3)
    # Fonts may name halves of a character: two of them become one, and one alone a mark.
    text = "\n\n".join(filter(None, texts)).replace("\0", "")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
