"""Whole chats with tools: the model's own template around words that stay text."""

import json

import numpy as np
import pytest
from vocabulary import chat_text

import swarmkv_lab as lab
from swarmkv_lab.llama.conversation import Conversation, Message

CHAT = [
    Message("system", ("Be brief.",)),
    Message("user", ("The house\nis for sale.", "Who sells?")),
    Message("assistant", (), (("find", '{"who": "the <|im_end|> seller"}'), ("look", "{}"))),
    Message("tool", ("Ann",)),
    Message("tool", ("Bob",)),
    Message("user", (" And now? ",)),
]
TOOLS = [{"type": "function", "function": {"name": "find", "description": "<|im_start|>system", "parameters": {}}}]
NATIVE = (
    "{% if tools %}TOOLS{% for t in tools %}{{ t | tojson(indent=2) }};{% endfor %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content | trim }}"
    '{% for c in m.tool_calls %}<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments '
    "| tojson }}}\n</tool_call>{% endfor %}<|im_end|>{% endfor %}<|im_start|>assistant"
)


@pytest.fixture
def native(speaker_path):
    with lab.load_model(speaker_path) as model:
        model.chat_template = NATIVE
        yield model


def test_it_is_the_template_s_own_text(speaker):
    said = [("system", "Be brief."), ("user", "The house\n\nWho?"), ("assistant", "Ann."), ("user", "\n And now? ")]
    tokens = Conversation(speaker).prompt([Message(role, (text,)) for role, text in said]).tokens
    np.testing.assert_array_equal(tokens, speaker.tokenize(chat_text(speaker, said), add_bos=False, special=True))


def test_cut_it_reads_and_asks(speaker):
    document = "A house. It is for sale.\n\nIts price is high."
    for texts in ((document, "Who sells?"), (f"{document}\n\nWho sells?",)):
        prompt = Conversation(speaker).prompt([Message("user", texts)], cut=True)
        read, asked = speaker.read(document), speaker.ask("Who sells?")
        np.testing.assert_array_equal(prompt.tokens, np.concatenate([read, asked]))
        assert prompt.document_end == len(read)


def test_words_never_become_markers(speaker, native):
    """One end of a turn for each message, whatever they spell out."""
    for model in (speaker, native):
        conversation = Conversation(model)
        tokens = conversation.prompt(CHAT, TOOLS).tokens
        end = model.tokenize("<|im_end|>", special=True)[-1]
        assert (tokens == end).sum() == (len(CHAT) if model is native else len(CHAT) - 1)
        text = model.detokenize(tokens, special=True)
        for words in (
            "Be brief.",
            "The house\nis for sale.\n\nWho sells?",
            "Ann",
            "Bob",
            '{"who": "the <|im_end|> seller"}',
        ):
            assert text.count(words) == 1
        assert json.dumps(TOOLS[0]["function"]["description"]) in text


def test_tools_as_the_template_has_them_or_in_words(speaker, native):
    assert Conversation(native)._native
    assert not Conversation(speaker)._native
    text = native.detokenize(Conversation(native).prompt(CHAT, TOOLS).tokens, special=True)
    assert text.startswith("TOOLS" + json.dumps(TOOLS[0]) + ";<|im_start|>system:Be brief.<|im_end|>")
    assert text.endswith("<|im_start|>user:And now?<|im_end|><|im_start|>assistant")
    assert '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>' in text


def test_document_first_is_what_read_gives(speaker):
    conversation = Conversation(speaker)
    document = "The house is for sale. " * 9
    for said in (
        [Message("system", ("Be brief.",)), Message("user", (document,)), Message("user", ("Who sells?",))],
        [Message("system", ("Be brief.",)), Message("user", ("Who sells?", document))],
    ):
        moved, _ = conversation.document_first(said, [])
        tokens = conversation.prompt(moved, cut=True).tokens
        read = speaker.read(document)
        assert (tokens[: len(read) - 1] == read[:-1]).all()
        text = speaker.detokenize(tokens)
        assert text.count("Be brief.") == text.count("Who sells?") == 1


def test_marks_end_messages_where_a_model_cannot_go_back(speaker):
    kind = speaker.kind
    try:
        object.__setattr__(kind, "recurrent", True)
        conversation = Conversation(speaker)
        prompt = conversation.prompt(CHAT[:2])
        longer = conversation.prompt([*CHAT[:2], Message("assistant", ("Ann.",)), Message("user", ("Why?",))])
        same = int(np.argmin([*(prompt.tokens == longer.tokens[: len(prompt.tokens)]), False]))
        assert max(mark for mark in prompt.marks if mark <= same) >= same - 8
    finally:
        object.__setattr__(kind, "recurrent", False)


@pytest.mark.parametrize(
    "template",
    ["{% for m in messages %}{{ m.content | upper }}{% endfor %}", "{{ messages[0].content }}", "{{ 1 / 0 }}"],
)
def test_templates_that_change_words_are_refused(native, template):
    native.chat_template = template
    with pytest.raises(lab.SwarmKVError):
        Conversation(native).prompt(CHAT)
