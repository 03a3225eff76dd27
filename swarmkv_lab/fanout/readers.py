"""Readers: the bytes of a text, Markdown, HTML or PDF file as plain text."""

import codecs
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.files import reason
from swarmkv_lab.progress import tqdm

_HTML = (".html", ".htm", ".xhtml")
SUFFIXES = (".txt", ".md", *_HTML, ".pdf")
"""what these files' names end with, as a rule"""


def text_of(data: bytes, name: str) -> str:
    """What a file says. Its name tells the kind, or its first bytes do; SwarmKVError for what is none of them."""
    if not data.strip():
        raise SwarmKVError(f"{name} is empty: there is nothing to prefill")
    suffix, start = PurePath(name).suffix.lower(), data.removeprefix(codecs.BOM_UTF8)[:256].lstrip().lower()
    if suffix == ".pdf" or start.startswith(b"%pdf-"):
        return _from_pdf(data, name)
    if suffix in _HTML or start.startswith((b"<!doctype html", b"<html")):
        return _from_html(data, name)
    return _from_text(data, name)


def _from_text(data: bytes, name: str) -> str:
    # Windows' editors begin a file with a mark, and so does whoever writes UTF-16.
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if wide else "utf-8-sig"
    if b"\0" in data and not wide:
        kind = "it holds bytes that no text has: save or export it as one of these"
        raise SwarmKVError(f"{name} is neither text (also Markdown) nor HTML nor PDF; {kind}")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        what = "UTF-16" if wide else "UTF-8"
        at = f"{error.reason} at byte {error.start:,}"
        raise SwarmKVError(f"{name} is not {what}: {at}; save it as UTF-8 text, HTML or PDF") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _from_html(data: bytes, name: str) -> str:
    with _reading(name, "HTML"):
        import lxml.html
        from inscriptis import Inscriptis

        try:
            data.decode("utf-8")
            encoding = "utf-8"
        except UnicodeDecodeError:
            encoding = None  # what the page itself says
        page = lxml.html.document_fromstring(data, lxml.html.HTMLParser(encoding=encoding, huge_tree=True))
        text = str(Inscriptis(page).get_text())
    if not text.strip():
        raise SwarmKVError(f"{name} has no text (perhaps scripts write it): save it from a browser as PDF")
    return text


def _from_pdf(data: bytes, name: str) -> str:
    with _reading(name, "PDF"):
        import pypdf

        logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # a broken file is one error, not a page of warnings
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):  # without a password for reading, the empty one opens it
            raise SwarmKVError(f"{name} is encrypted: save a copy without its password")
        bar = tqdm(reader.pages, desc=name, unit="page", delay=2, leave=False)
        pages = [page.extract_text().strip() for page in bar]
    text = "\n\n".join(filter(None, pages)).replace("\0", "")
    if not text.strip():
        raise SwarmKVError(
            f"{name} has {len(pages):,} pages and no text (a scan?): let a program such as ocrmypdf recognise it first"
        )
    # Fonts may name halves of a character: two of them become one, and one alone a mark.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@contextmanager
def _reading(name: str, kind: str) -> Iterator[None]:
    """One SwarmKVError for whatever stops a reader."""
    try:
        yield
    except SwarmKVError:
        raise
    except ImportError as error:
        raise SwarmKVError(f"{name}: {kind} needs the documents extra: pip install 'swarmkv-lab[documents]'") from error
    except RecursionError as error:
        raise SwarmKVError(f"{name} is nested too deeply for {kind}: save it in another way, or as text") from error
    except Exception as error:  # a broken file may fail a reader anywhere, in its own words
        raise SwarmKVError(f"{name} is broken, or no {kind} at all: {reason(error) or type(error).__name__}") from error
