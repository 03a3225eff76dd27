"""Readers: the bytes of a text, Markdown, HTML or PDF file as plain text."""

import codecs
import io
import logging
from pathlib import PurePath

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.files import reason

_HTML = (".html", ".htm", ".xhtml")
SUFFIXES = (".txt", ".md", *_HTML, ".pdf")  # of these files' names, as a rule


def text_of(data: bytes, name: str) -> str:
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
