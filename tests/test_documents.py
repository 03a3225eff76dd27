"""Documents: bundled or yours, UTF-8 and not empty, with findings that stand where they are said to stand."""

import io
import json
import sys

import matplotlib.pyplot as plt
import pypdf
import pytest
from conftest import ROOT
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

import swarmkv_lab as lab


def test_every_planted_finding_can_be_quoted():
    text = lab.load_document("dossier")
    findings = json.loads((ROOT / "data/documents/dossier.findings.json").read_text())
    assert {"security", "licence", "cost", "reliability"} <= {finding["agent"] for finding in findings}
    for finding in findings:
        assert text.count(finding["quote"]) == 1, finding


def test_the_dossiers_agents():
    agents = lab.load_agents("dossier")
    assert list(agents)[:4] == ["security", "licence", "cost", "reliability"]
    assert len(agents) == 8


def test_a_file_of_yours(tmp_path):
    (tmp_path / "mine.txt").write_text("hello", encoding="utf-8")
    assert lab.load_document(tmp_path / "mine.txt") == "hello"


def test_documents_that_cannot_be_read(tmp_path):
    (tmp_path / "latin").write_bytes("é".encode("latin-1") * 3)
    (tmp_path / "empty").write_text(" \n")
    for name, message in (("latin", "UTF-8"), ("empty", "empty has no text"), ("absent", "dossier")):
        with pytest.raises(lab.SwarmKVError, match=message):
            lab.load_document(tmp_path / name)
    with pytest.raises(lab.SwarmKVError, match="no agents"):
        lab.load_agents("article")


# -- HTML and PDF


def pdf_of(*pages):
    """A PDF whose pages say these texts; matplotlib writes them with fonts of its own."""
    file = io.BytesIO()
    with plt.rc_context({"pdf.fonttype": 42}), PdfPages(file) as book:
        for text in pages:
            figure = Figure()
            figure.text(0.1, 0.5, text)
            book.savefig(figure)
    return file.getvalue()


def encrypted(data, password, algorithm):
    writer, file = pypdf.PdfWriter(clone_from=io.BytesIO(data)), io.BytesIO()
    writer.encrypt(password, owner_password="owner", algorithm=algorithm)
    writer.write(file)
    return file.getvalue()


HTML = """<!DOCTYPE html><html><head><title>no</title><style>p {color: red}</style><script>no()</script></head><body>
<h1>The lighthouse</h1><p>Its k<b>eep</b>er is Åda.</p><ul><li>one</li></ul><table><tr><td>fee</td><td>12 €</td></tr>
</table></body></html>"""


@pytest.mark.parametrize(("name", "encoding"), [("page.HTML", "utf-8"), ("page", "utf-8"), ("page.htm", "cp1252")])
def test_a_page_is_its_text(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(HTML.replace("<head>", f'<head><meta charset="{encoding}">').encode(encoding))
    words = lab.load_document(tmp_path / name).split()
    assert " ".join(words) == "The lighthouse Its keeper is Åda. * one fee 12 €"


@pytest.mark.parametrize("name", ["paper.pdf", "download"])
def test_a_pdf_is_its_text(tmp_path, name):
    data = pdf_of("The keeper is Åda Lind.", "A visit costs 12 euros.")
    (tmp_path / name).write_bytes(data)
    text = "The keeper is Åda Lind.\n\nA visit costs 12 euros."
    assert lab.load_document(tmp_path / name) == lab.load_document("upload.pdf", data) == text


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-256"])
def test_a_pdf_that_anybody_may_read_is_read_and_one_with_a_password_is_not(algorithm):
    data = pdf_of("open")
    assert lab.load_document("a.pdf", encrypted(data, "", algorithm)) == "open"
    with pytest.raises(lab.SwarmKVError, match="password"):
        lab.load_document("a.pdf", encrypted(data, "secret", algorithm))


@pytest.mark.parametrize("text", ["\ufeffone\r\ntwo\r", "one\ntwo\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_text_from_any_editor(text, encoding):
    assert (
        lab.load_document("a.md", text.removeprefix("\ufeff" * (encoding != "utf-8")).encode(encoding)) == "one\ntwo\n"
    )


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.pdf", b" ", "a.pdf has no text"),
        ("a.pdf", b"%PDF-1.7\n", "a.pdf .* as PDF"),
        ("a.pdf", pdf_of("half")[:900], "a.pdf .* as PDF"),
        ("a.pdf", pdf_of("", ""), "a.pdf has no text"),
        ("a.html", b"<html><script>write()</script></html>", "a.html has no text"),
        ("a.html", b"<div>" * 5000 + b"deep", "a.html .* as HTML"),
        ("a.docx", b"PK\3\4\24\0\6\0", "a.docx .* as text"),
        ("a.txt", b"\xff\xfe\x00\xd8", "a.txt .* as text"),
        ("a.txt", bytes(100_000_001), "a.txt .* 100,000,000"),
    ],
)  # fmt: skip
def test_files_that_are_none_are_one_sentence(name, data, message, caplog):
    with pytest.raises(lab.SwarmKVError, match=message) as raised:
        lab.load_document(name, data)
    assert "\n" not in str(raised.value)
    assert not caplog.records


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
    assert lab.load_document("a.pdf", pdf_of("x")) == "\U0001d400 \ufffd"


def calls(work, *arguments):
    """How many functions were called: a cost that no other program changes."""
    count = 0

    def step(*_):
        nonlocal count
        count += 1

    sys.setprofile(step)
    try:
        work(*arguments)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    ("name", "make"), [("a.pdf", lambda n: pdf_of(*["words"] * n)), ("a.html", lambda n: b"<p>words</p>" * n)]
)
def test_four_times_the_pages_are_four_times_the_work(name, make):
    small, large = make(20), make(80)
    assert calls(lab.load_document, name, large) < 5 * calls(lab.load_document, name, small)
