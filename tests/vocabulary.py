"""Vocabularies without a model, and plain Jinja, for tests of words."""

import ctypes
import json
from datetime import datetime

import llama_cpp
from gguf import GGUFWriter
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from swarmkv_lab.llama.guard import LlamaGuard
from swarmkv_lab.llama.renderer import Generation
from swarmkv_lab.llama.words import Words
from swarmkv_lab.sizing.gguf_header import read_header

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


class Vocabulary(Words):
    """The words of a GGUF, whose weights are not read. pre: how it splits text, instead of as the file says."""

    def __init__(self, path, template=None, pre=None, **chat_options):
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        overrides = (llama_cpp.llama_model_kv_override * 2)()
        if pre is not None:
            overrides[0].tag, overrides[0].key = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, b"tokenizer.ggml.pre"
            overrides[0].value.val_str = pre.encode()
            params.kv_overrides = overrides
        self._text_guard = LlamaGuard()
        with self._text_guard:
            self._handle = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        self._vocab = llama_cpp.llama_model_get_vocab(self._handle)
        self.name, self.metadata = path.stem, read_header(path)
        self._learn()
        self.chat_template, self.chat_options = template, chat_options

    def says(self, template):
        """The same words with another template."""
        self.chat_template = template
        self.__dict__.pop("_around", None)
        return self

    def __del__(self):
        llama_cpp.llama_model_free(self._handle)


def llama_tokens(words, text):
    """llama.cpp's own tokens of a text in one piece, special tokens parsed, without BOS and EOS."""
    data = text.encode()
    tokens = (ctypes.c_int32 * (len(data) + 8))()
    with words._text_guard:
        n = llama_cpp.llama_tokenize(words._vocab, data, len(data), tokens, len(tokens), False, True)
    return list(tokens[:n])


def write_spm(path, pieces=(), **settings):
    """A SentencePiece vocabulary: letters, a few words, bytes, and pieces of one's own, (text, score, type) each."""
    letters = "▁abcdefghijklmnopqrstuvwxyz<>/|?.\n"
    tokens = [("<unk>", 0, UNKNOWN), ("<s>", 0, CONTROL), ("</s>", 0, CONTROL)]
    tokens += [(f"<0x{byte:02X}>", 0, BYTE) for byte in range(256)] + [(letter, -9, NORMAL) for letter in letters]
    tokens += [("▁w", -1, NORMAL), ("▁wh", -1, NORMAL), ("▁who", -1, NORMAL), ("<s", -1, NORMAL), *pieces]
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    texts, scores, types = zip(*tokens, strict=True)
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    for name, value in settings.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    for name in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{name}", 1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def chat_text(model, said):
    """(role, text) pairs as plain Jinja renders a model's template."""
    messages = [{"role": role, "content": text} for role, text in said]
    return _rendered(model.chat_template, messages, model._template.options, tools=None, documents=None)


def plain_jinja(template, content, options, **variables):
    """One user's message as plain Jinja renders a template."""
    return _rendered(template, [{"role": "user", "content": content}], options, **variables)


def _rendered(template, messages, options, **variables):
    """With what the templates of the field expect."""

    def raised(message):
        raise TemplateError(message)

    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    jinja.globals |= {"raise_exception": raised, "strftime_now": lambda how: datetime.now().strftime(how)}
    jinja.filters["tojson"] = lambda value, **how: json.dumps(value, **{"ensure_ascii": False} | how)
    return jinja.from_string(template).render(messages=messages, add_generation_prompt=True, **options, **variables)
