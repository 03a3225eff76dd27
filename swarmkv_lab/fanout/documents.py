"""The documents that agents read, and the questions that they ask of them."""

import codecs
import io
import json
import logging
import re
import warnings
from logging.handlers import BufferingHandler
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any

from swarmkv_lab.errors import SwarmKVError, not_one_of
from swarmkv_lab.files import DATA, open_regular, read_text, reason

_FOLDER = DATA / "documents"
_MOST_BYTES = 100_000_000  # some tens of millions of tokens: no model reads more
_KINDS = {".txt": "text", ".md": "text", **dict.fromkeys((".html", ".htm", ".xhtml"), "HTML"), ".pdf": "PDF"}
SUFFIXES = tuple(_KINDS)  # of these files' names, as a rule
_OTHERS = b"PK\3\4", b"{\\rtf", b"%!PS"  # which may pass for text; pictures and Office's older files do not
_PAGE = re.compile(rb"(?>\s|<\?xml[^>]*>|<!--.*?-->)*+<(!doctype\s+html|html|head|body|title|meta)\b", re.I | re.S)
_PAGE_SAYS = re.compile(rb"""<(?:meta|\?xml)\b[^>]*?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.I)
# What browsers leave out by the page's own marks. Style sheets are not read: what those alone hide stays.
_HIDDEN = """//*[@hidden or self::dialog[not(@open)] or contains(concat(' head title script style template noscript ',
    'noframes noembed iframe object canvas audio video datalist metadata desc '), concat(' ', local-name(), ' '))
    or re:test(@style, '(^|;)\\s*(display\\s*:\\s*none|visibility\\s*:\\s*(hidden|collapse))', 'i')]"""
_BLOCKS = ("section", "nav", "form", "fieldset", "details", "summary", "dl", "dt", "dd", "hr", "option", "legend")

# The article repeats one sentence. This one is ours, of 20 SmolLM2 tokens: 175 times are 3,500, and 400 are enough
# to cut the article's 3,501 from, or a deeper document.
ARTICLE_SENTENCE = " The shared cache holds every key and value of the document, and each agent reads from its end."
ARTICLE_REPEATS = 400


def load_document(name: str | Path, data: bytes | None = None) -> str:
    """The text of a document: "dossier", "article" (one sentence repeated), or any text, Markdown, HTML or PDF file.

    name: or the path of the file. data: the file's bytes, where they come from elsewhere, as an upload's do. Its first
    bytes tell the kind, or its name does. HTML and PDF need the extra ``documents``. Warns of a PDF's pages without
    text, and of its faults. Raises SwarmKVError for a file that is none of these, encrypted, damaged, too large,
    without text, or in an encoding that it does not say.
    """
    if data is None and name == "article":
        return ARTICLE_SENTENCE * ARTICLE_REPEATS
    data = _bytes_of(name) if data is None else data
    if len(data) > _MOST_BYTES:
        raise SwarmKVError(f"{name} has more than {_MOST_BYTES:,} bytes, which is too much: cut it in parts")
    start = data[:4096].translate(None, b"\xef\xbb\xbf\xff\xfe\0").lstrip()
    named = _KINDS.get(PurePath(name).suffix.lower(), "text")
    kind = "PDF" if start.startswith(b"%PDF-") else "HTML" if _PAGE.match(start) else named
    read = {"PDF": _from_pdf, "HTML": _from_html, "text": _from_text}[kind]
    try:
        if data.startswith(_OTHERS):
            raise ValueError("it is an Office, zip, RTF or PostScript file")
        text = read(data) if data.strip() else ""
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


def _from_text(data: bytes, declared: str = "") -> str:
    # Windows' editors begin a file with a mark, and so does whoever writes UTF-16. No encoding is guessed.
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        if wide or not declared:
            raise ValueError("it is not UTF-8, and does not say what it is") from error
        text = data.decode(declared)
    if "\0" in text or "\x1b$" in text:  # UTF-32 begins as UTF-16 does; Japanese mail (ISO 2022) hides in ASCII
        raise ValueError("it holds characters that no text has")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _from_html(data: bytes) -> str:
    import inscriptis.model.config
    import lxml.html
    import webencodings

    says = _PAGE_SAYS.search(data[:4096])
    known = says and webencodings.lookup(says[1].decode())  # as browsers do: latin-1 is cp1252
    text = _from_text(data, known.codec_info.name if known else "")
    parser = lxml.html.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
    page = lxml.html.document_fromstring(text.encode(), parser)
    for part in page.xpath(_HIDDEN, namespaces={"re": "http://exslt.org/regular-expressions"}):
        part.clear(keep_tail=True)
        part.tag = "span"
    lxml.etree.strip_attributes(page, "style")  # inscriptis takes flex and grid for inline: words would touch
    looks = inscriptis.css_profiles.STRICT_CSS_PROFILE
    config = inscriptis.model.config.ParserConfig(looks | dict.fromkeys(_BLOCKS, looks["div"]))
    config.custom_html_tag_handler_mapping = inscriptis.model.tag.CustomHtmlTagHandlerMapping({}, {"table": _end_table})
    return str(inscriptis.Inscriptis(page, config).get_text())


def _end_table(state: Any) -> None:
    # A line for each row, and tabs between its cells: padded to columns, they would need memory without a bound.
    from inscriptis.model.tag.table_tag import table_end_handler

    rows = ["\t".join(cell.get_text().strip() for cell in row.columns) for row in state.current_table[-1].rows]
    state.current_table[-1] = SimpleNamespace(get_text="\n".join([*rows, ""]).__str__, get_annotations=lambda *_: [])
    table_end_handler(state)


def _from_pdf(data: bytes) -> str:
    import pypdf

    log, heard = logging.getLogger("pypdf"), BufferingHandler(len(data))
    log.propagate = False  # what it says about a broken file is one line of ours
    log.addHandler(heard)
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):  # without a password for reading, the empty one opens it
            raise ValueError("it is encrypted: save a copy without its password")
        texts, size = [], 0
        for page in reader.pages:
            # As drawn, which keeps columns apart: the layout mode mixes their lines, and tears words set by the letter.
            texts.append(page.extract_text().strip())
            drawing = page.get_contents()
            size += len(texts[-1]) + (0 if drawing is None else len(drawing.get_data()))
            if size > _MOST_BYTES:
                raise ValueError(f"its pages hold more than {_MOST_BYTES:,} bytes: cut it in parts")
        fields = (reader.get_fields() or {}).items()
    finally:
        log.removeHandler(heard)
        log.propagate = True
    if lost := [fault.getMessage() for fault in heard.buffer if fault.name == "pypdf.filters"]:
        raise ValueError(f"it is damaged: {lost[0]}")
    if heard.buffer:
        warnings.warn(f"a PDF has faults, and may lack text: {heard.buffer[0].getMessage()}", stacklevel=3)
    filled = [(field.alternate_name or name, field.value) for name, field in fields if field.value]
    forms = [f"{name}: {str(value).lstrip('/')}" for name, value in filled if isinstance(value, str | list)]
    scans = [number for number, text in enumerate(texts, 1) if not text.strip("\ufffd \n")]  # or in a font that is lost
    if scans and any(texts + forms):
        warnings.warn(f"{len(scans)} of a PDF's {len(texts)} pages have no text, first {scans[0]}", stacklevel=3)
    # Fonts may name halves of a character: two of them become one, and one alone a mark.
    text = "\n\n".join(filter(None, texts + forms)).replace("\0", "")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
