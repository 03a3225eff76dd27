"""Words: text to a model's tokens and back, and its chat template around a document and a question."""

import ctypes
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple

import llama_cpp
import numpy as np

from swarmkv_lab.errors import INT32_MAX, SwarmKVError, utf8, whole_number
from swarmkv_lab.llama import template
from swarmkv_lab.llama.api import pointer
from swarmkv_lab.llama.context import Tokens
from swarmkv_lab.llama.guard import LlamaGuard
from swarmkv_lab.llama.interrupt import interrupts_wait

MOST_TEXT = 1 << 26  # characters: more than any context holds
MOST_LINE = 1 << 19  # characters; see _stack_for
_SHORT_LINE = 512
_STACK = 1024  # bytes for a character; libstdc++ was seen to take 327
_LINE_BEGINS = re.compile(r"(?<=[\r\n])(?=\S)")
_SPACES = " \t\n\v\f\r"  # C's isspace, which is llama.cpp's
_SPECIAL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
_stack_size = threading.Lock()


class Special(NamedTuple):
    """A token that llama.cpp finds in a text by its name, before anything else."""

    token: int
    text: str
    attributes: int

    def has(self, attribute: int) -> bool:
        """Whether it has one of llama.cpp's LLAMA_TOKEN_ATTR_*."""
        return bool(self.attributes & attribute)


class Words:
    """What a Model knows of text: its vocabulary and its chat template.

    Text is of two kinds. A template's own words become the control tokens that they name. All other text, a document,
    a question, an answer, stays text: control tokens and user-defined ones that it spells out are taken apart.
    """

    name: str
    metadata: dict[str, Any]
    n_vocab: int
    has_vocabulary: bool
    bos: np.ndarray
    chat_template: str | None
    chat_options: Mapping[str, Any]
    _vocab: Any
    _text_guard: LlamaGuard

    def tokenize(
        self, text: str, add_bos: bool = True, *, special: bool = False, continued: bool = False
    ) -> np.ndarray:
        """Text to token ids, int32 (n,). A BOS goes first where the model wants one, and no EOS last.

        continued: the text goes on where another ended, so neither a BOS nor the space that some vocabularies begin a
        text with goes first. A BOS in the middle of a sequence makes it another prompt.
        special: read ``<|im_end|>`` and the like as the tokens of these names, as what ``chat`` renders needs. Never
        for text of others: a document could end the user's turn and answer in the assistant's name.
        """
        tokens = self._tokens([(text, special)], continued)
        return np.concatenate([self._bos, tokens]) if add_bos and not continued else tokens

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

    def without_control(self, tokens: Tokens) -> np.ndarray:
        """An answer's tokens as others may read them, int32 (n,): no control tokens, user-defined ones taken apart."""
        if not self.has_vocabulary:
            return np.array(tokens, np.int32)
        kept: list[int] = []
        for token in map(int, tokens):
            marker = self._markers.get(token)
            if marker is None:
                kept.append(token)
            elif not marker.has(llama_cpp.LLAMA_TOKEN_ATTR_CONTROL):
                kept += self._plain(marker.text, spaced=False)
        return np.array(kept, np.int32)

    # -- the chat template

    def chat(self, messages: Sequence[tuple[str, str]]) -> str:
        """(role, content) pairs rendered by the model's template, ending where the assistant's answer begins."""
        if self.chat_template is None:
            raise SwarmKVError(f"{self.name} has no chat template: write the prompt as plain text")
        for role, content in messages:
            utf8("a role", role), utf8("a message", content)
        with self._named():
            return template.chat(self.chat_template, messages, self._template_options)

    def read(self, document: str) -> np.ndarray:
        """A document as prefix tokens: it opens the user's turn, which ``ask`` ends; plain without a template.

        Before it stands what the template begins a chat with, such as its default system prompt (of the day on which
        the model first read, where it names a date). Only the template's own markers become control tokens, not those
        that the document spells out.
        """
        return np.concatenate([self._bos, self._tokens(self._before(document))])

    def prefix(self, document: str | Tokens) -> np.ndarray:
        """A document's tokens, int32 (n,): words as ``read`` reads them, token ids as they are, checked."""
        return self.read(document) if isinstance(document, str) else self.check_tokens(document)

    def document(self, document: str | Tokens) -> np.ndarray:
        """A document's own tokens, int32 (n,), the same behind any ``head``; token ids as they are, checked."""
        if not isinstance(document, str):
            return self.check_tokens(document)
        return self._tokens(self._before(document)[-1:], continued=True)

    def head(self, role: str | Tokens) -> np.ndarray:
        """What stands before a document for an agent with this system prompt, int32 (n,); token ids as they are.

        Raises SwarmKVError where the model has no chat template, or one without system prompts.
        """
        if not isinstance(role, str):
            return self.check_tokens(role) if len(role) else np.empty(0, np.int32)
        if self.chat_template is None:
            raise SwarmKVError(f"{self.name} has no chat template: give what stands before the document as token ids")
        before, after = self._around_role
        return np.concatenate([self._bos, self._tokens([(before, True), (role.strip(), False), (after, True)])])

    @cached_property
    def _around_role(self) -> tuple[str, str]:
        with self._named():
            before, after = template.around_role(str(self.chat_template), self._template_options)
        return before.removeprefix(self.detokenize(self._bos, special=True)), after

    def ask(self, question: str) -> np.ndarray:
        """A question as branch tokens: it ends the user's turn and opens the assistant's; plain without a template.

        As in ``read``, markers that the question spells out stay text.
        """
        return self._tokens(self._after(question), continued=True)

    def seam(self, document: str, question: str) -> tuple[np.ndarray, np.ndarray]:
        """What the cut between document and question changes: the tokens there, int32 (n,), cut and as one text.

        Both are empty where nothing changes. A full stop and the blank line after it are one token of some
        vocabularies, and two of theirs here; so is white space at the document's end.
        """
        cut = np.concatenate([self._tokens(self._before(document)), self.ask(question)])
        whole = self._tokens([*self._before(document), *self._after(question)])
        most = min(len(cut), len(whole))
        alike = int(np.argmin([*(cut[:most] == whole[:most]), False]))
        end = int(np.argmin([*(cut[::-1][: most - alike] == whole[::-1][: most - alike]), False]))
        return cut[alike : len(cut) - end], whole[alike : len(whole) - end]

    def _before(self, document: str) -> list[tuple[str, bool]]:
        if self._turn is None:
            return [(document, False)]
        return [(self._turn.before, True), (document.lstrip() if self._turn.strips else document, False)]

    def _after(self, question: str) -> list[tuple[str, bool]]:
        if not question.strip():
            raise SwarmKVError("an agent's prompt is empty: give it at least one word")
        asked = template.BETWEEN + question.strip()
        return [(f"{asked}\n", False)] if self._turn is None else [(asked, False), (self._turn.after, True)]

    @cached_property
    def _turn(self) -> template.Turn | None:
        if self.chat_template is None:
            if self.chat_options:
                raise SwarmKVError(
                    f"{self.name} has no chat template for chat_options={self.chat_options}: leave them out"
                )
            return None
        with self._named():
            turn = template.turn(self.chat_template, self._template_options)
        bos = self.detokenize(self._bos, special=True)
        return turn._replace(before=turn.before.removeprefix(bos))  # which goes first anyway

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except SwarmKVError as error:
            raise SwarmKVError(f"{self.name}: {error}") from error

    @property
    def _template_options(self) -> dict[str, Any]:
        eos = llama_cpp.llama_vocab_eos(self._vocab)
        bos_token, eos_token = (self.detokenize(ids, special=True) for ids in (self.bos, [eos] if eos >= 0 else []))
        return {"bos_token": bos_token, "eos_token": eos_token, **self.chat_options}

    # -- tokens

    @cached_property
    def _bos(self) -> np.ndarray:
        """What a text begins with: the BOS, int32 (1,), of a vocabulary that puts one there, or nothing."""
        kind, none = llama_cpp.llama_vocab_type(self._vocab), self.bos[:0]
        if kind in (
            llama_cpp.LLAMA_VOCAB_TYPE_NONE,
            llama_cpp.LLAMA_VOCAB_TYPE_RWKV,
            llama_cpp.LLAMA_VOCAB_TYPE_PLAMO2,
        ):
            return none
        return self.bos if llama_cpp.llama_vocab_get_add_bos(self._vocab) else none

    @cached_property
    def _specials(self) -> list[Special]:
        """All of them, in the order in which llama.cpp looks for them: the longest first."""
        found, listed = [], _SPECIAL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        with self._text_guard:
            for token in range(self.n_vocab):
                if (attributes := llama_cpp.llama_vocab_get_attr(self._vocab, token)) & listed:
                    text = llama_cpp.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace")
                    found.append(Special(token, text, attributes))
        return sorted(filter(lambda special: special.text, found), key=lambda special: -len(special.text.encode()))

    @cached_property
    def _markers(self) -> dict[int, Special]:
        """Those that untrusted text must not become, by token. White space and single characters mark nothing."""
        return {
            special.token: special
            for special in self._specials
            if special.has(_SPECIAL) and len(special.text.strip(f"{_SPACES}▁")) > 1
        }

    def _tokens(self, parts: Sequence[tuple[str, bool]], continued: bool = False) -> np.ndarray:
        """The tokens of parts of one text, int32 (n,), each (text, whether a template's): as if it were in one piece.

        continued: it goes on where another text ended.
        """
        whole_number("characters of text", sum(len(text) for text, _ in parts), most=MOST_TEXT)
        for text, _ in parts:
            utf8("the text", text)
        if not self.has_vocabulary:
            raise SwarmKVError(f"{self.name} has no vocabulary (a twin): pass token ids instead of text")
        pieces: list[str | Special] = []
        for text, trusted in parts:
            for piece in self._split(text) if trusted else [text]:
                if isinstance(piece, str) and pieces and isinstance(before := pieces[-1], str):
                    pieces[-1] = before + piece
                else:
                    pieces.append(piece)
        tokens: list[int] = []
        for last, piece, following in zip([None, *pieces], pieces, [*pieces[1:], None], strict=False):
            if isinstance(piece, Special):
                tokens.append(piece.token)
                continue
            if isinstance(last, Special) and last.has(llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP):
                piece = piece.lstrip(_SPACES)
            if isinstance(following, Special) and following.has(llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP):
                piece = piece.rstrip(_SPACES)
            tokens += self._plain(piece, spaced=last is not None or not continued)
        return np.array(tokens, np.int32)

    def _split(self, text: str) -> list[str | Special]:
        """A template's words at the special tokens in them, as llama.cpp splits them."""
        pieces: list[str | Special] = [text] if text else []
        for special in self._specials:
            if special.text in text:
                split: list[str | Special] = []
                for piece in pieces:
                    if isinstance(piece, str):
                        first, *rest = piece.split(special.text)
                        split += [first, *(one for other in rest for one in (special, other))]
                    else:
                        split.append(piece)
                pieces = [piece for piece in split if piece]
        return pieces

    def _plain(self, text: str, *, spaced: bool) -> list[int]:
        """Tokens of text that has no special tokens: where it spells one out, it is cut after the first character.

        llama.cpp itself finds user-defined tokens in any text, and lets SentencePiece's merges end in control tokens.
        """
        tokens = self._piece(text, spaced) if text else []
        if not (found := set(tokens) & self._markers.keys()):
            return tokens
        names = {name for token in found for name in (self._markers[token].text, self._spelled(token))}
        cuts = sorted({at + 1 for name in names for at in _places(name, text)})
        if not cuts:  # the sign for what a vocabulary does not know
            return tokens
        pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        return [token for i, piece in enumerate(pieces) for token in self._plain(piece, spaced=spaced and not i)]

    def _spelled(self, token: int) -> str:
        """SentencePiece writes a space as this sign, and finds the sign where a text has a space."""
        return self._markers[token].text.replace("▁", " ")

    def _piece(self, text: str, spaced: bool) -> list[int]:
        """llama.cpp's tokens of a piece of text. spaced: with the space before it that a text begins with, if any."""
        if spaced or not self._adds_space:
            return self._llama(text)
        if text[0] == " " and len(text) > 1:
            return self._llama(text[1:])
        guard = "\ue000"  # in no vocabulary, so that nothing merges with it
        tokens, before = self._llama(guard + text), self._llama(guard)
        if tokens[: len(before)] != before:
            raise SwarmKVError(f"{self.name}'s vocabulary puts a space before every text, and {text!r:.40} has none")
        return tokens[len(before) :]

    @cached_property
    def _adds_space(self) -> bool:
        kind = llama_cpp.llama_vocab_type(self._vocab)
        if kind == llama_cpp.LLAMA_VOCAB_TYPE_UGM:
            return bool(self.metadata.get("tokenizer.ggml.add_space_prefix"))
        return (
            kind == llama_cpp.LLAMA_VOCAB_TYPE_SPM and self.metadata.get("tokenizer.ggml.add_space_prefix") is not False
        )

    def _llama(self, text: str) -> list[int]:
        data = text.encode()
        n, arguments = len(data) + 2, (self._vocab, data, len(data))  # rarely are there more tokens than bytes
        with self._text_guard, interrupts_wait():
            while True:
                tokens = np.empty(n, np.int32)
                called = partial(llama_cpp.llama_tokenize, *arguments, pointer(tokens, ctypes.c_int32), n, False, False)
                found = _on_large_stack(called, self._stack_for(text))
                if not -INT32_MAX <= found < -n:
                    break
                n = -found
        if found < 0:
            raise SwarmKVError(f"llama.cpp could not tokenize {len(data)} bytes of text (returned {found})")
        return [int(token) for token in tokens[:found]]

    def _stack_for(self, text: str) -> int:
        """Bytes of stack that llama.cpp may need for a text; 0 for so few that every thread has them.

        Where a BPE vocabulary's way to split text is a std::regex, that calls itself for each character of a run, of
        letters, signs or spaces say, and a run too long for the stack ends the process. No run goes over the end of a
        line, blank lines after it included.
        """
        if llama_cpp.llama_vocab_type(self._vocab) != llama_cpp.LLAMA_VOCAB_TYPE_BPE:
            return 0
        longest = max(map(len, _LINE_BEGINS.split(text)))
        if longest > MOST_LINE:
            raise SwarmKVError(
                f"a line of {longest:,} characters is too long to tokenize: break it every {MOST_LINE:,}"
            )
        return longest * _STACK if longest > _SHORT_LINE else 0


def _places(name: str, text: str) -> Iterator[int]:
    """Where a name begins in a text, overlaps included."""
    at = text.find(name)
    while at >= 0:
        yield at
        at = text.find(name, at + 1)


def _on_large_stack(call: Callable[[], int], n_bytes: int) -> int:
    """What a call returns, made in a thread with so much stack; in this one for 0 bytes."""
    if not n_bytes:
        return call()
    returned: list[int] = []
    thread = threading.Thread(target=lambda: returned.append(call()), daemon=True)
    try:
        with _stack_size:
            before = threading.stack_size((n_bytes >> 16) + 16 << 16)
            try:
                thread.start()
            finally:
                threading.stack_size(before)
    except RuntimeError as error:
        raise SwarmKVError(
            f"no thread with {n_bytes:,} bytes of stack, which a long line of text needs: {error}"
        ) from error
    thread.join()
    return returned[0]
