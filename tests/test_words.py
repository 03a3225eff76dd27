"""Words: a model's own template around a document and a question, and text that stays text."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from vocabulary import CONTROL, NORMAL, USER_DEFINED, Vocabulary, llama_tokens, plain_jinja, write_spm

import swarmkv_lab as lab
from swarmkv_lab.llama import renderer
from swarmkv_studies.peers import build

SYSTEM = """{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
THINKING = SYSTEM + "{%- if enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
FORMS = {
    "a default system prompt": SYSTEM,
    "white space stripped": "{{ bos_token }}{% for m in messages %}[{{ m.content | trim }}]{% endfor %}",
    "half stripped": "{% for m in messages %}{{ m.content.lstrip() }}{% endfor %}",
    "content as a list of parts": "{% for p in messages[0].content %}<{{ p.text }}>{% endfor %}",
    "content of either kind": "{% for m in messages %}{% if m.content is string %}s{{ m.content }}{% else %}"
    "{% for p in m.content %}p{{ p['text'] }}{% endfor %}{% endif %}{% endfor %}",
    "a day, a namespace and a loop that is left": "{% set ns = namespace(n=0) %}{{ strftime_now('%Y') }} {% for m in "
    "messages %}{% set ns.n = ns.n + 1 %}{% if ns.n > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}{{ ns.n }}",
    "a generation's marks": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}!",
    "tools that are None": "{% if tools is none and documents is none %}{{ messages[0].content }}{% endif %}.",
    "tools that are looped over": "{% for tool in tools %}{{ tool }}{% endfor %}{{ messages[0].content }}.",
    "JSON": "{{ {'é<': 1} | tojson }}{{ messages[0].content }}.",
}  # fmt: skip
REFUSED = {
    "dropped": "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}",
    "repeated": "{{ messages[0].content }}{{ messages[0].content }}",
    "the question first": "{{ messages[0].content.split('\\n\\n')[::-1] | join }}",
    "escaped": "{{ messages[0].content | e }}",
    "as JSON": "{{ messages[0].content | tojson }}",
    "in small letters": "{{ messages[0].content | lower }}",
    "white space folded": "{{ messages[0].content.split() | join(' ') }}",
    "cut": "{{ messages[0].content[:40] }}",
    "not allowed": "{{ raise_exception('no user here') }}",
    "not Jinja": "{% for %}",
    "unsafe": "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content.__class__ }}",
    "calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "too long": "{% for i in range(99999) %}{{ 'a' * 99 }}{% endfor %}{{ messages[0].content }}",
    "too large": "{{ 'a' * 99999999999 }}",
}
DOCUMENTS = ["The company is for sale", " \n Two lines\nare here", "Signs <|im_end|>\n <tool_call> </s> stay é中"]


@pytest.fixture
def words(speaker):
    """The default model's vocabulary, to be given templates."""
    return Vocabulary(speaker.path)


@pytest.fixture
def short(monkeypatch, tmp_path):
    """Templates get a second."""
    path = tmp_path / "renderer.py"
    path.write_text(Path(renderer.__file__).read_text().replace("MOST_SECONDS = 10", "MOST_SECONDS = 1"))
    monkeypatch.setattr(renderer, "__file__", str(path))


def text_of(words, document, question):
    text = "".join(text for text, _ in [*words._before(document), *words._after(question)])
    return text.removeprefix(words.detokenize(words._bos, special=True))


def by_jinja(words, content):
    """As plain Jinja renders it, in the first way in which it can. None: in no way."""
    parts = [{"type": "text", "text": content}]
    for variables in ({"tools": None, "documents": None}, {}):
        for given in (content, parts):
            try:
                text = plain_jinja(words.chat_template, given, words._template.options, **variables)
            except Exception:
                continue
            if content.strip() in text:
                return text.removeprefix(words.detokenize(words._bos, special=True))
    return None


def is_like_jinja(words, document, question):
    """Text, tokens where the document spells out no marker, and the number of markers where it does."""
    text = by_jinja(words, f"{document}\n\n{question}")
    assert text_of(words, document, question) == text
    ours = [*words.read(document), *words.ask(question)]
    marks = list(words._markers)
    if not np.isin(words.tokenize(document, False, special=True), marks).any():
        whole = words._tokens([*words._before(document), *words._after(question)])
        assert whole.tolist() == [*words._bos, *llama_tokens(words, text)]
        assert words.detokenize(ours) == words.detokenize(whole)  # other tokens at the cut alone
    without = llama_tokens(words, text.replace(document.strip(), "x"))
    assert np.isin(ours[len(words._bos) :], marks).sum() == np.isin(without, marks).sum()


@pytest.mark.parametrize("form", FORMS)
def test_words_are_those_of_plain_jinja(words, form):
    words.says(FORMS[form])
    for document in DOCUMENTS:
        is_like_jinja(words, document, "Who sells?")


@pytest.mark.parametrize("form", REFUSED)
def test_a_template_that_does_something_else_with_a_users_words(words, form):
    with pytest.raises(lab.SwarmKVError) as refused:
        words.says(REFUSED[form]).read("a document")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("template", [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{ 9 ** 9 ** 9 }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
])  # fmt: skip
@pytest.mark.skipif(sys.platform == "win32", reason="it has no limit on a process's time")
def test_a_template_that_never_ends(words, short, template):
    with pytest.raises(lab.SwarmKVError):
        words.says(template).ask("Who?")


def test_thinking_is_an_option_that_the_template_must_know(speaker, words):
    plain = words.says(THINKING).ask("Who?")
    words.chat_options = {"enable_thinking": False}
    thought = words.says(THINKING).ask("Who?")
    assert words.detokenize(thought) == words.detokenize(plain) + "<think>\n\n</think>\n\n"
    with pytest.raises(lab.SwarmKVError, match="enable_thinking"):
        words.says(SYSTEM).ask("Who?")
    model = lab.load_model(speaker.path, chat_options={"enable_thinking": False})
    with model, pytest.raises(lab.SwarmKVError, match="enable_thinking"):
        model.read("a document")
    with pytest.raises(lab.SwarmKVError, match="enable_thinking"):
        words.says(None).read("a document")


def test_the_default_system_prompt_is_read(speaker):
    text = speaker.detokenize([*speaker.read("It is for sale."), *speaker.ask("Who sells?")], special=True)
    assert text == plain_jinja(speaker.chat_template, "It is for sale.\n\nWho sells?", speaker._template.options)
    assert text.startswith("<|im_start|>system\n")


# -- vocabularies


def test_pieces_of_sentencepiece_have_no_space_of_their_own(tmp_path):
    """The space before a text goes before the first piece alone, and after a special token, as in one text."""
    end = ("<end>", 0, CONTROL)
    words = Vocabulary(write_spm(tmp_path / "spm.gguf", [end]), "{{ bos_token }}u: {{ messages[0].content }}<end>a: ")
    whole = llama_tokens(words, "u: who is it\n\nwho<end>a: ")
    assert [*words.read("who is it"), *words.ask("who")] == [*words.bos, *whole]
    assert words.detokenize(words.tokenize("who", continued=True)) == "who"
    assert words.tokenize(" who", continued=True).tolist() == words.tokenize("who", add_bos=False).tolist()
    assert (
        words.tokenize(" ", continued=True).tolist()
        == words.tokenize("", add_bos=False).tolist() + [*llama_tokens(words, "a")][:1]
    )
    bare = Vocabulary(write_spm(tmp_path / "bare.gguf", add_space_prefix=False))
    assert bare.tokenize("who", continued=True).tolist() == bare.tokenize("who", add_bos=False).tolist()


def test_one_bos_and_no_eos(tmp_path):
    path = write_spm(tmp_path / "spm.gguf", add_bos_token=True, add_eos_token=True)
    said = "{{ messages[0].content }}"
    for template in (said, "{{ bos_token }}" + said, "<s>" + said):
        tokens = [*Vocabulary(path, template).read("who"), *Vocabulary(path, template).ask("who")]
        assert (tokens.count(1), tokens.count(2), tokens[0]) == (1, 0, 1)
    without = Vocabulary(write_spm(tmp_path / "none.gguf", add_bos_token=False), "{{ bos_token }}" + said)
    assert without.read("who").tolist().count(1) == 1
    assert without.says(None).read("who").tolist().count(1) == 0


def test_markers_that_a_text_spells_out_are_taken_apart(tmp_path):
    """Also control tokens that merges end in, user-defined ones inside each other, and some across a cut."""
    pieces = [("<call>", 0, USER_DEFINED), ("call>", 0, USER_DEFINED), ("<a b>".replace(" ", "▁"), 0, CONTROL),
              ("\n\n", 0, USER_DEFINED), ("▁▁", 0, USER_DEFINED), ("<a▁", -1, NORMAL), ("<a", -1, NORMAL),
              ("<a▁b", -1, NORMAL)]  # fmt: skip
    words = Vocabulary(write_spm(tmp_path / "spm.gguf", pieces), "<call>{{ messages[0].content }}<call>")
    marks = list(words._markers)
    assert len(marks) == 5  # white space marks nothing
    for text in ("<s>", "a<call>b", "<<call>call>", "call>" * 9, "<a b>", "</s", "<call", "x<s><s></s>"):
        for tokens in (words.read(text)[len(words.bos) + 1 :], words.ask(text)[:-1], words.tokenize(text, False)):
            assert not np.isin(tokens, marks).any(), text
            assert text in words.detokenize(tokens)
    assert words.n_vocab - 5 in words.tokenize("a\n\nb")
    answer = [*words.tokenize("a", False), *marks[:1], *words.tokenize("<call>", False, special=True)]
    assert words.detokenize(words.without_control(answer)).endswith("<call>")
    assert not np.isin(words.without_control(answer), marks).any()


LONG = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from vocabulary import Vocabulary
from swarmkv_lab.errors import SwarmKVError
words = Vocabulary(Path(sys.argv[1]), pre=sys.argv[2])
for run in ("a", " ", "\\n", "1", "!", "é", "a b "):
    print(len(words.tokenize(run * (60_000 // len(run)), add_bos=False)), end=" ")
try:
    words.tokenize("a" * 600_000)
except SwarmKVError as error:
    print("refused")
"""


@pytest.mark.parametrize("pre", ["deepseek-llm", "gpt-4o", "exaone-moe"])
def test_long_runs_of_characters_end_nobodys_process(speaker, pre):
    command = [sys.executable, "-c", LONG, str(speaker.path), pre]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.endswith("refused\n")


def test_a_long_line_has_the_tokens_of_a_short_one(words):
    line = "Who sells, and why? " * 200
    assert words.tokenize(line, add_bos=False).tolist() == llama_tokens(words, line)
    assert words.tokenize("a\n" * 9999).tolist() == llama_tokens(words, "a\n" * 9999)


# -- all of llama.cpp's


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The folder models of llama.cpp's sources: $LLAMA_CPP_SOURCES, or fetched."""
    if given := os.environ.get("LLAMA_CPP_SOURCES"):
        return Path(given) / "models"
    try:
        return build._sources(tmp_path_factory.mktemp("sources")) / "models"
    except lab.SwarmKVError as error:
        pytest.skip(str(error))


@pytest.mark.peers
def test_vocabularies_give_llama_cpps_tokens(models):
    pairs = sorted(models.glob("ggml-vocab-*.gguf.inp"))
    assert len(pairs) > 10
    for path in pairs:
        words = Vocabulary(path.with_suffix(""))
        texts = path.read_bytes().decode().split("\n__ggml_vocab_test__\n")
        for text, tokens in zip(texts, path.with_suffix(".out").read_text().splitlines(), strict=False):
            assert words.tokenize(text, add_bos=False).tolist() == [int(token) for token in tokens.split()], path.name


@pytest.mark.peers
@pytest.mark.parametrize("vocabulary", ["qwen2", "phi-3", "gemma-4"])
def test_every_template_gives_plain_jinjas_words_or_is_refused(models, vocabulary):
    words = Vocabulary(models / f"ggml-vocab-{vocabulary}.gguf")
    templates, refused = sorted((models / "templates").glob("*.jinja")), 0
    assert len(templates) > 60
    for path in templates:
        try:
            words.says(path.read_text(encoding="utf-8")).ask("Who?")
        except lab.SwarmKVError:
            assert by_jinja(words, "a document\n\nWho?") is None, path.name
            refused += 1
            continue
        for document in DOCUMENTS:
            is_like_jinja(words, document, "Who sells?")
    assert refused < 3
