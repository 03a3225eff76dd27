"""Documents: bundled or yours, UTF-8 and not empty, with findings that stand where they are said to stand."""

import io
import json
import re
import sys
import warnings
import zlib

import pypdf
import pytest
from conftest import ROOT
from PIL import Image

import swarmkv_lab as lab


def test_every_planted_finding_can_be_quoted():
    text = lab.load_document("dossier")
    findings = json.loads((ROOT / "data/documents/dossier.findings.json").read_text())
    assert {finding["agent"] for finding in findings} <= {*lab.load_agents("dossier")}
    assert len(lab.load_agents("dossier")) == 8
    for finding in findings:
        assert text.count(finding["quote"]) == 1, finding


def test_documents_that_cannot_be_read(tmp_path):
    (tmp_path / "empty").write_text(" \n")
    for name, message in (("empty", "empty has no text"), ("absent", "dossier")):
        with pytest.raises(lab.SwarmKVError, match=message):
            lab.load_document(tmp_path / name)
    with pytest.raises(lab.SwarmKVError, match="no agents"):
        lab.load_agents("article")


# -- HTML and PDF


def encrypted(data, password, algorithm):
    writer, file = pypdf.PdfWriter(clone_from=io.BytesIO(data)), io.BytesIO()
    writer.encrypt(password, owner_password="owner", algorithm=algorithm)
    writer.write(file)
    return file.getvalue()


def written(*pages):
    """A PDF whose pages are drawn by these operators in Courier."""
    kids = [f"{number} 0 R" for number in range(5, 5 + 2 * len(pages))]
    tree = f"<</Type/Pages/Kids[{' '.join(kids[::2])}]/Count {len(pages)}>>"
    font = "<</Type/Font/Subtype/Type1/BaseFont/Courier/Encoding/WinAnsiEncoding>>", "<</Font<</F 3 0 R>>>>"
    objects = ["<</Type/Catalog/Pages 2 0 R>>", tree, *font]
    for index, drawing in enumerate(pages):
        contents = f"/Resources 4 0 R/Contents {kids[2 * index + 1]}"
        objects.append(f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]{contents}>>")
        packed = zlib.compress(drawing.encode("cp1252")).decode("latin-1")
        objects.append(f"<</Filter/FlateDecode/Length {len(packed)}>>stream\n{packed}\nendstream")
    file, starts = b"%PDF-1.7\n", []
    for number, what in enumerate(objects, 1):
        starts.append(len(file))
        file += f"{number} 0 obj{what}\nendobj\n".encode("latin-1")
    table = "".join(f"{start:010} 00000 n \n" for start in [0, *starts])
    return file + f"xref\n0 {len(starts) + 1}\n{table}trailer<</Size {len(starts) + 1}/Root 1 0 R>>\n" \
        f"startxref\n{len(file)}\n%%EOF\n".encode()  # fmt: skip


def drawn(x, y, text):
    return f"BT /F 10 Tf {x} {y} Td ({text}) Tj ET\n"


HTML = """<!DOCTYPE html><html><head><title>no</title><style>p {color: red}</style><script>no()</script></head><body>
<h1>The lighthouse</h1><p>Its k<b>eep</b>er is Åda.</p><ul><li>one</li></ul><table><tr><td>fee</td><td>12 €</td></tr>
</table></body></html>"""


@pytest.mark.parametrize("name", ["page.HTML", "page"])
def test_a_page_is_its_text(tmp_path, name):
    (tmp_path / name).write_text(HTML, "utf-8")
    words = lab.load_document(tmp_path / name).split()
    assert " ".join(words) == "The lighthouse Its keeper is Åda. * one fee 12 €"


@pytest.mark.parametrize("name", ["paper.pdf", "download"])
def test_a_pdf_is_its_text(tmp_path, name):
    data = written(drawn(50, 700, "The keeper is Åda Lind."), drawn(50, 700, "A visit costs 12 euros."))
    (tmp_path / name).write_bytes(data)
    text = "The keeper is Åda Lind.\n\nA visit costs 12 euros."
    assert lab.load_document(tmp_path / name) == lab.load_document("upload.pdf", data) == text


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-256"])
def test_a_pdf_that_anybody_may_read_is_read_and_one_with_a_password_is_not(algorithm):
    data = written(drawn(9, 9, "open"))
    assert lab.load_document("a.pdf", encrypted(data, "", algorithm)) == "open"
    with pytest.raises(lab.SwarmKVError, match=r"a\.pdf"):
        lab.load_document("a.pdf", encrypted(data, "secret", algorithm))


@pytest.mark.parametrize("text", ["\ufeffone\r\ntwo\r", "one\ntwo\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_text_from_any_editor(text, encoding):
    data = text.removeprefix("\ufeff" * (encoding != "utf-8")).encode(encoding)
    assert lab.load_document("a.md", data) == "one\ntwo\n"


@pytest.mark.parametrize(("name", "data", "message"), [
    ("a.pdf", b" ", "a.pdf has no text"),
    ("a.pdf", b"%PDF-1.7\n", "a.pdf .* as PDF"),
    ("a.pdf", written("", ""), "a.pdf has no text"),
    ("a.html", b"<html><script>write()</script></html>", "a.html has no text"),
    ("a.html", b"<div>" * 5000 + b"deep", "a.html .* as HTML"),
    ("a.txt", b"\xff\xfe\x00\xd8", "a.txt .* as text"),
    ("a.txt", bytes(100_000_001), "a.txt .* 100,000,000"),
])  # fmt: skip
def test_files_that_are_none_are_one_sentence(name, data, message):
    with pytest.raises(lab.SwarmKVError, match=message) as raised:
        lab.load_document(name, data)
    assert "\n" not in str(raised.value)


def test_a_folder_and_a_huge_file(tmp_path):
    with pytest.raises(lab.SwarmKVError, match=str(tmp_path)):
        lab.load_document(tmp_path)
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(10**12)
    with pytest.raises(lab.SwarmKVError, match=r"huge .* 100,000,000"):
        lab.load_document(tmp_path / "huge")


@pytest.mark.parametrize(("module", "name", "data"), [("pypdf", "a.pdf", b"%PDF-"), ("lxml.html", "a.html", b"<p>")])
def test_without_the_extra_its_command_is_named(monkeypatch, module, name, data):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(lab.SwarmKVError, match=r"pip install 'swarmkv-lab\[documents\]'"):
        lab.load_document(name, data)


def test_a_character_in_two_halves_is_one(monkeypatch):
    monkeypatch.setattr(pypdf.PageObject, "extract_text", lambda page: "\ud835\udc00 \ud835\0")
    assert lab.load_document("a.pdf", written("")) == "\U0001d400 \ufffd"


@pytest.mark.parametrize("lost", [[], [2], [1, 3]])
def test_how_many_pages_have_no_text_is_said(lost):
    pages = ["" if number in lost else drawn(50, 700, f"page {number}") for number in (1, 2, 3)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        text = lab.load_document("a.pdf", written(*pages))
    numbers = [[str(len(lost)), "3", str(lost[0])]] if lost else []
    assert [re.findall(r"\d+", str(warning.message)) for warning in said] == numbers
    assert text == "\n\n".join(f"page {number}" for number in (1, 2, 3) if number not in lost)


def test_a_pdf_that_was_cut_is_refused_and_a_page_that_is_lost_is_said():
    data = written(drawn(50, 700, "The first page."), drawn(50, 700, "The second page."))
    for end in range(1, len(data) - 8, 7):
        with pytest.raises(lab.SwarmKVError):
            lab.load_document("a.pdf", data[:end])
    packed = data.index(b"stream\n") + len("stream\n")
    with pytest.warns(UserWarning, match="1 of a PDF's 2 pages"):
        text = lab.load_document("a.pdf", data[:packed] + bytes([data[packed] ^ 255]) + data[packed + 1 :])
    assert text == "The second page."


@pytest.mark.parametrize(("page", "text"), [
    ("<style>no</style><template>no</template><noscript>no</noscript><iframe>no</iframe>a", "a"),
    ("<div style='display:none'>no<!-- no -->no<b>no</b></div>a<!-- no -->b<?no no?>c", "abc"),
    ("<p><span>T</span>he H<sub>2</sub>O&nbsp;&amp;&#8364;&hellip;", "The H2O &€…"),
    ("<div>a</div><div>b</div><section>c</section><section>d</section><dt>e", "a b c d e"),
])  # fmt: skip
def test_a_page_says_what_a_browser_shows(page, text):
    assert lab.load_document("a.html", page.encode()).split() == text.split()


def test_a_table_is_a_line_for_each_row_however_wide():
    rows = "<tr><td>1<td>b c<tr><td>2<td>d"
    assert lab.load_document("a.html", f"<table><caption>t</caption>{rows}</table>".encode()) == "t\n1 b c\n2 d"
    tall = f"<table><tr><td>{'x' * 10**6}</td></tr>{'<tr><td>y</td></tr>' * 10**4}</table>"  # 10 GB, if padded
    assert len(lab.load_document("a.html", tall.encode())) == 10**6 + 2 * 10**4


@pytest.mark.parametrize("name", ["a.txt", "a.html"])
@pytest.mark.parametrize(("text", "encoding"), [
    ("Der Wärter heißt Åda.", "cp1252"), ("It costs 12 €", "cp1252"), ("é", "latin-1"), ("灯台守", "shift_jis"),
    ("灯台守", "utf-32"), ("灯台守", "iso2022_jp"), ("Смотритель маяка", "koi8-r"), ("plain", "utf-16-le"),
    ("plain\0", "utf-8"), ("a\0", "utf-16"),
])  # fmt: skip
def test_no_encoding_is_guessed(name, text, encoding):
    with pytest.raises(lab.SwarmKVError, match="UTF-8"):
        lab.load_document(name, text.encode(encoding))


@pytest.mark.parametrize(("name", "data", "text"), [
    ("a.TXT", written(drawn(9, 9, "pdf")), "pdf"),
    ("a.pdf", b"\n<!DOCTYPE html><p>page", "page"),
    ("README", b"<HTML><p>page</HTML>", "page"),
    ("a.md", b"<div>kept</div> <html>", "<div>kept</div> <html>"),
])  # fmt: skip
def test_what_a_file_is_its_first_bytes_say(name, data, text):
    assert lab.load_document(name, data).strip() == text


def picture(kind):
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("name", ["a.txt", "a.pdf", "a"])
@pytest.mark.parametrize("data", [
    b"{\\rtf1 hi}", b"PK\3\4", b"%!PS-Adobe-3.0", b"\xd0\xcf\x11\xe0",
    *map(picture, ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]),
])  # fmt: skip
def test_other_kinds_of_files_are_refused(name, data):
    with pytest.raises(lab.SwarmKVError, match="save it as"):
        lab.load_document(name, data)


@pytest.mark.parametrize("text", ["\u200b\ufeff \u00a0\u2003\n", "<p>&#8203;&nbsp;</p>", "<title>a</title>"])
def test_a_document_that_shows_nothing_is_refused(text):
    with pytest.raises(lab.SwarmKVError, match="no text"):
        lab.load_document("a.html" if "<" in text else "a.txt", text.encode())
