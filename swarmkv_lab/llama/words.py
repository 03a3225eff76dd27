"""Words: text to a model's tokens and back, and its chat template around a document and a question."""

import ctypes
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache, partial
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import llama_cpp
import numpy as np

from swarmkv_lab.errors import INT32_MAX, SwarmKVError, utf8, whole_number
from swarmkv_lab.llama.api import pointer
from swarmkv_lab.llama.context import Tokens
from swarmkv_lab.llama.guard import LlamaGuard, interrupts_wait
from swarmkv_lab.llama.template import ChatTemplate, Form

MOST_TEXT = 1 << 26  # characters: more than any context holds
MOST_LINE = 1 << 19  # characters; see _stack_for
_SHORT_LINE = 512
_STACK = 1024  # bytes for a character; libstdc++ was seen to take 327
_LINE_BEGINS = re.compile(r"(?<=[\r\n])(?=\S)")
_EDGE = 16  # white space around a text, characters, that the template sees
_SPACES = " \t\n\v\f\r"  # C's isspace, which is llama.cpp's
_SPECIAL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
_stack_size = threading.Lock()
_Result = TypeVar("_Result")


class Special(NamedTuple):
    """A token that llama.cpp finds in a text by its name, before anything else."""

    token: int
    text: str
    attributes: int


class Words:
    """What a Model knows of text: its vocabulary and its chat template.

    Text is of two kinds. A template's own words become the control tokens that they name. All other text, a document,
    a question, an answer, stays text: control tokens and user-defined ones that it spells out are taken apart.
    """

    name: str
    metadata: Mapping[str, Any]
    chat_options: Mapping[str, Any]
    _vocab: Any
    _text_guard: LlamaGuard

    def _learn(self) -> None:
        """What stays when the model is closed."""
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        """tokens in the vocabulary, and so logits in a row"""
        self.has_vocabulary: bool = llama_cpp.llama_vocab_type(self._vocab) != llama_cpp.LLAMA_VOCAB_TYPE_NONE
        """whether it knows words: a twin knows token ids only"""
        bos: int = llama_cpp.llama_vocab_bos(self._vocab)
        self.bos = np.array([bos] if bos >= 0 else [], np.int32)
        """the beginning-of-sequence token, int32 (1,), or (0,) where the vocabulary has none"""
        template = self.metadata.get("tokenizer.chat_template")
        self.chat_template: str | None = template if isinstance(template, str) and template else None
        """the chat template as it stands in the GGUF; rendered in a sandbox, in a process of its own"""

    def tokenize(
        self, text: str, add_bos: bool = True, *, special: bool = False, continued: bool = False
    ) -> np.ndarray:
        """Text to token ids, int32 (n,). A BOS goes first where the model wants one, and no EOS last.

        continued: the text goes on where another ended: no BOS goes first, nor the space that some vocabularies put
        there. special: ``<|im_end|>`` and the like become the tokens of these names, as a template's own words need;
        never for text of others, which could end the user's turn and answer in the assistant's name.
        """
        return self._tokens([(text, special)], continued, add_bos)

    def detokenize(self, tokens: Tokens, special: bool = False) -> str:
        """Token ids to text; special tokens such as the end of a turn are shown only if ``special``."""
        if not self.has_vocabulary:
            return " ".join(str(int(token)) for token in tokens)
        ids = self.check_tokens(tokens) if len(tokens) else np.empty(0, np.int32)
        first, n = pointer(ids, ctypes.c_int32), -64 * (len(ids) + 1)
        while n < 0:  # a second time if the first buffer was too small
            text = ctypes.create_string_buffer(-n)
            with self._text_guard:
                n = llama_cpp.llama_detokenize(self._vocab, first, len(ids), text, len(text), False, special)
        return text.raw[:n].decode("utf-8", "replace")

    def check_tokens(self, tokens: Tokens) -> np.ndarray:
        """Token ids as int32 (n,), or one error that says which id the vocabulary does not have."""
        try:
            ids = np.asarray(tokens)
        except ValueError as error:  # rows of several lengths
            raise SwarmKVError(f"expected a 1-D sequence of token ids: {error}") from error
        if not isinstance(tokens, np.ndarray) and any(isinstance(token, bool) for token in tokens):
            raise SwarmKVError("expected token ids, and True and False are none")
        if ids.ndim != 1 or len(ids) == 0 or not np.issubdtype(ids.dtype, np.integer):
            raise SwarmKVError(f"expected a non-empty 1-D sequence of token ids, got {ids.dtype} of shape {ids.shape}")
        outside = (ids < 0) | (ids >= self.n_vocab)
        if outside.any():
            raise SwarmKVError(f"token id {ids[outside][0]} is outside the vocabulary (0 to {self.n_vocab - 1})")
        return np.ascontiguousarray(ids, np.int32)

    def is_eog(self, token: int) -> bool:
        """Whether a token ends the generation: end of text or of the assistant's turn."""
        whole_number("token", token, 0, self.n_vocab - 1)
        with self._text_guard:
            return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    @cached_property
    def ends(self) -> frozenset[int]:
        """All tokens that end the generation."""
        return frozenset(filter(self.is_eog, range(self.n_vocab)))

    def without_control(self, tokens: Tokens) -> np.ndarray:
        """An answer's tokens as others may read them, int32 (n,): no control tokens, user-defined ones taken apart."""
        if not self.has_vocabulary:
            return np.array(tokens, np.int32)
        kept: list[int] = []
        for token in map(int, tokens):
            marker = self._markers.get(token)
            if marker is None:
                kept.append(token)
            elif not marker.attributes & llama_cpp.LLAMA_TOKEN_ATTR_CONTROL:
                kept += self._plain(marker.text, spaced=False)
        return np.array(kept, np.int32)

    # -- the chat template

    def read(self, document: str) -> np.ndarray:
        """A document as prefix tokens: it opens the user's turn, which ``ask`` ends; plain without a template.

        Before it stands what the template begins a chat with, such as its default system prompt (of the day on which
        the model first read, where it names a date). Markers that the document spells out stay text.
        """
        return self._tokens(self._before(document))

    def prefix(self, document: str | Tokens) -> np.ndarray:
        """A document's tokens, int32 (n,): words as ``read`` reads them, token ids as they are, checked."""
        return self.read(document) if isinstance(document, str) else self.check_tokens(document)

    def document(self, document: str | Tokens) -> np.ndarray:
        """A document's own tokens, int32 (n,), the same behind any ``head``; token ids as they are, checked.

        Raises SwarmKVError for token ids that open a turn of their own, as ``read`` gives them.
        """
        if not isinstance(document, str):
            ids = self.check_tokens(document)
            opening = self._tokens(self._before("")[:-1]) if self.chat_template else ids[:0]
            if len(opening) and np.array_equal(ids[: len(opening)], opening):
                about = f"the document is to stand behind a prompt, and its first {len(opening):,} tokens open a turn"
                raise SwarmKVError(f"{about}, as of model.read: give its text, or model.document(text)")
            return ids
        return self._tokens(self._before(document)[-1:], continued=True)

    def head(self, role: str | Tokens) -> np.ndarray:
        """What stands before a document for an agent with this system prompt, int32 (n,); token ids as they are.

        Raises SwarmKVError where the model has no chat template, or one without system prompts.
        """
        if not isinstance(role, str):
            return self.check_tokens(role) if len(role) else np.empty(0, np.int32)
        asked = [("system", f"{role.strip()}s", ()), ("user", "u", ())]  # a letter, so that there is a text
        before, (said, _), between, *_ = self._rendered(asked)
        if said == "u":
            raise SwarmKVError(f"{self.name}: its chat template writes the system prompt after a user's words")
        return self._tokens([before, (said[:-1], False), between])

    def ask(self, question: str) -> np.ndarray:
        """A question as branch tokens: it ends the user's turn and opens the assistant's; else as ``read``."""
        return self._tokens(self._after(question), continued=True)

    def _before(self, document: str) -> list[tuple[str, bool]]:
        if self._is_plain:
            return [(document, False)]
        opening, *_ = self._rendered([("user", "x", ())])
        (before, _), (text, _), _ = self._rendered([("user", f"{document}x", ())])
        return [opening, (before[len(opening[0]) :] + text[:-1], False)]  # with the white space that it keeps

    def _after(self, question: str) -> list[tuple[str, bool]]:
        if not question.strip():
            raise SwarmKVError("an agent's prompt is empty: give it at least one word")
        asked = f"\n\n{question.strip()}"
        return [(f"{asked}\n", False)] if self._is_plain else [(asked, False), self._rendered([("user", "x", ())])[-1]]

    @property
    def _is_plain(self) -> bool:
        return self.chat_template is None and not self.chat_options

    def _rendered(
        self, said: Sequence[tuple[str, str, Sequence[tuple[str, str]]]], tools: Sequence[Any] = ()
    ) -> list[tuple[str, bool]]:
        """(text, whether the template's) of a chat, in turn; the template's first and last, also where they are empty.

        said: of each message its role, its text, and calls of tools: (name, arguments' JSON).
        """
        form: list[tuple[str, str, str, bool, int]] = []
        texts: list[str] = []
        for role, text, calls in said:
            edges = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
            before, after = (edge if len(edge) <= _EDGE else "" for edge in edges)
            bare = text[len(before) : len(text) - len(after)] if text.strip() else ""
            form.append((role, before, after, bool(bare), len(calls)))
            texts += [bare] if bare else []
            texts += [part for call in calls for part in call]
        texts += [json.dumps(tool, ensure_ascii=False) for tool in tools]
        pieces = self._around(tuple(form), len(tools))
        return [(texts[piece], False) if isinstance(piece, int) else (piece, True) for piece in pieces]

    @cached_property
    def _around(self) -> Callable[[Form, int], list[str | int]]:
        """ChatTemplate.around, which renders a form once."""
        return lru_cache(128)(self._template.around)

    @property
    def _template(self) -> ChatTemplate:
        if self.chat_template is None:
            about = f"for roles or chat_options={self.chat_options}: write plain text, or token ids"
            raise SwarmKVError(f"{self.name} has no chat template {about}")
        eos = llama_cpp.llama_vocab_eos(self._vocab)
        bos_token, eos_token = (self.detokenize(ids, special=True) for ids in (self.bos, [eos] if eos >= 0 else []))
        given = {"bos_token": bos_token, "eos_token": eos_token, **self.chat_options}
        return ChatTemplate(self.name, self.chat_template, given)

    # -- tokens

    @cached_property
    def _bos(self) -> np.ndarray:
        """What llama.cpp begins a text with: the BOS, int32 (1,), or nothing."""
        return self.bos if self._llama("", add_special=True)[:1] == self.bos.tolist() else self.bos[:0]

    @cached_property
    def _specials(self) -> list[Special]:
        """All of them, in the order in which llama.cpp looks for them: the longest first."""
        found, listed = [], _SPECIAL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        with self._text_guard:
            for token in range(self.n_vocab):
                if (attributes := llama_cpp.llama_vocab_get_attr(self._vocab, token)) & listed:
                    name: bytes = llama_cpp.llama_vocab_get_text(self._vocab, token)
                    found.append(Special(token, name.decode("utf-8", "replace"), attributes))
        return sorted((special for special in found if special.text), key=lambda special: -len(special.text.encode()))

    @cached_property
    def _markers(self) -> dict[int, Special]:
        """Those that untrusted text must not become, by token. White space and single characters mark nothing."""
        return {
            special.token: special
            for special in self._specials
            if special.attributes & _SPECIAL and len(special.text.strip(f"{_SPACES}▁")) > 1
        }

    def _tokens(self, parts: Sequence[tuple[str, bool]], continued: bool = False, add_bos: bool = True) -> np.ndarray:
        """The tokens of parts of one text, int32 (n,), each (text, whether a template's): as if it were in one piece.

        continued: it goes on where another text ended. A BOS that a template's words begin with is the one of add_bos.
        """
        whole_number("characters of text", sum(len(text) for text, _ in parts), most=MOST_TEXT)
        for text, _ in parts:
            utf8("the text", text)
        if not self.has_vocabulary:
            raise SwarmKVError(f"{self.name} has no vocabulary (a twin): pass token ids instead of text")
        add_bos = add_bos and not continued
        if add_bos and parts[0][1]:
            parts = [(parts[0][0].removeprefix(self.detokenize(self._bos, special=True)), True), *parts[1:]]
        tokens: list[int] = []
        pieces: list[str | Special] = []
        found = (piece for text, trusted in parts for piece in (self._split(text) if trusted else [text]))
        for is_text, run in groupby(found, lambda piece: isinstance(piece, str)):
            of_one_kind = list(run)
            pieces += ["".join(map(str, of_one_kind))] if is_text else of_one_kind
        for last, piece, following in zip([None, *pieces], pieces, [*pieces[1:], None], strict=False):
            if isinstance(piece, Special):
                tokens.append(piece.token)
                continue
            if isinstance(last, Special) and last.attributes & llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP:
                piece = piece.lstrip(_SPACES)
            if isinstance(following, Special) and following.attributes & llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP:
                piece = piece.rstrip(_SPACES)
            tokens += self._plain(piece, spaced=last is not None or not continued)
        return np.array([*self._bos, *tokens] if add_bos else tokens, np.int32)

    def _split(self, text: str) -> list[str | Special]:
        """A template's words at the special tokens in them: of several that begin together, the longest."""
        inside = {special.text: special for special in self._specials if special.text in text}
        split = re.split(f"({'|'.join(map(re.escape, inside))})", text) if inside else [text]
        return [inside.get(piece, piece) for piece in split if piece]

    def _plain(self, text: str, *, spaced: bool) -> list[int]:
        """Tokens of text that has no special tokens: where it spells one out, it is cut after the first character.

        llama.cpp itself finds user-defined tokens in any text, and lets SentencePiece's merges end in control tokens.
        """
        tokens = self._piece(text, spaced) if text else []
        names = {self._markers[token].text for token in set(tokens) & self._markers.keys()}
        names |= {name.replace("▁", " ") for name in names}  # as SentencePiece writes a space
        cuts = [at.end() + 1 for at in re.finditer(f"(?={'|'.join(map(re.escape, names))})", text)] if names else []
        if not cuts:  # as of the sign for what a vocabulary does not know
            return tokens
        pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        return [token for i, piece in enumerate(pieces) for token in self._plain(piece, spaced=spaced and not i)]

    def _piece(self, text: str, spaced: bool) -> list[int]:
        """llama.cpp's tokens of text without special ones. spaced: with the space that a text begins with, if any."""
        if spaced or not self._adds_space:
            return self._llama(text)
        guard = "\ue000"  # in no vocabulary, so that nothing merges with it
        tokens, before = self._llama(guard + text), self._llama(guard)
        if tokens[: len(before)] != before:
            raise SwarmKVError(f"{self.name}'s vocabulary puts a space before every text, and {text!r:.40} has none")
        return tokens[len(before) :]

    @cached_property
    def _adds_space(self) -> bool:
        kind, spm = llama_cpp.llama_vocab_type(self._vocab), llama_cpp.LLAMA_VOCAB_TYPE_SPM
        said = self.metadata.get("tokenizer.ggml.add_space_prefix", kind == spm)
        return said is not False and kind in (spm, llama_cpp.LLAMA_VOCAB_TYPE_UGM)

    def _llama(self, text: str, add_special: bool = False) -> list[int]:
        data = text.encode()
        n = len(data) + 2  # rarely are there more tokens than bytes
        with self._text_guard, interrupts_wait():
            while True:
                tokens = np.empty(n, np.int32)
                arguments = (self._vocab, data, len(data), pointer(tokens, ctypes.c_int32), n, add_special, False)
                found = on_large_stack(partial(llama_cpp.llama_tokenize, *arguments), self._stack_for(text))
                if not -INT32_MAX <= found < -n:
                    break
                n = -found
        if found < 0:
            raise SwarmKVError(f"llama.cpp could not tokenize {len(data)} bytes of text (returned {found})")
        return list(map(int, tokens[:found]))

    def _stack_for(self, text: str) -> int:
        """Bytes of stack that llama.cpp may need for a text; 0 for so few that every thread has them.

        Some BPE vocabularies split text by a std::regex, which calls itself for each character of a run of letters,
        signs or spaces: one too long for the stack ends the process. No run goes beyond a line and blank lines after.
        """
        if llama_cpp.llama_vocab_type(self._vocab) != llama_cpp.LLAMA_VOCAB_TYPE_BPE:
            return 0
        longest = max(map(len, _LINE_BEGINS.split(text)))
        if longest > MOST_LINE:
            raise SwarmKVError(f"a line has {longest:,} characters, too long to tokenize: break it every {MOST_LINE:,}")
        return longest * _STACK if longest > _SHORT_LINE else 0


def on_large_stack(call: Callable[[], _Result], n_bytes: int) -> _Result:
    """What a call returns, made in a thread with so much stack; in this one for 0 bytes."""
    if not n_bytes:
        return call()
    try:
        with _stack_size, ThreadPoolExecutor(1) as thread:
            before = threading.stack_size((n_bytes >> 16) + 16 << 16)
            try:
                returned = thread.submit(call)
            finally:
                threading.stack_size(before)
            return returned.result()
    except RuntimeError as error:
        raise SwarmKVError(f"a thread with {n_bytes:,} bytes of stack is needed: {error}") from error
