"""Prefill: a document decoded as the settings ask for it, perhaps with flash attention for branches without it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.context import Context, Tokens
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.snapshot.layout import other_layout
from swarmkv_lab.snapshot.prefix_cache import PrefixCache
from swarmkv_lab.snapshot.snapshot import KVSnapshot


def prefill(
    model: Model, tokens: Sequence[int] | np.ndarray, *, cache: bool = False, progress: bool = True, **settings: Any
) -> KVSnapshot:
    """A snapshot of the tokens' KV state. settings: as in Context (n_ctx: by default as many as there are tokens).

    cache: look for the longest prefix of the tokens that the lab's own folder holds for this model and these settings,
    prefill the rest, and keep the result there. The bits are those of a prefill without it, as only whole batches of a
    shorter prefix are used (and none where layers have a sliding window, whose cells would lie in another order).
    """
    ids = model.check_tokens(tokens)
    chosen = ContextSettings.of(**settings).sized(len(ids))
    kept = PrefixCache(model, chosen) if cache else None
    found = kept.find(ids) if kept else None
    if found is not None and len(found.tokens) == len(ids):
        return found
    with Prefill(model, chosen) as reading:
        if kept is not None and found is not None:
            reading.resume(found, kept.usable(len(found.tokens), len(ids)))
        snapshot = reading.snapshot(ids, progress=progress)
    if kept:
        kept.keep(snapshot)
    return snapshot


def prefill_into(ctx: Context, tokens: Tokens, seq_id: int = 0, *, progress: bool = False) -> None:
    """Decode a document into an empty sequence, as the context's settings ask for it.

    With flash_attn="prefill" the sequence has no logits then, as after a restore: its next tokens come first.
    """
    with Prefill(ctx.model, ctx.settings, ctx.callback) as reading:
        reading.into(ctx, ctx.model.check_tokens(tokens), seq_id, progress=progress)


class Prefill(ExitStack):
    """The prefill of one document, in steps, each of which goes on where the last one ended.

    settings: of the contexts that go on from the document. With flash_attn="prefill" it has a context of its own, with
    flash attention, from its first step until this ends (a ``with`` block). callback: as a Context's. holding: told of
    the bytes of KV memory that this holds, for as long as it does.
    """

    def __init__(
        self,
        model: Model,
        settings: ContextSettings,
        callback: Callable[[], None] | None = None,
        holding: Callable[[int], AbstractContextManager[None]] = lambda n_bytes: nullcontext(),
    ) -> None:
        super().__init__()
        self._model, self._settings = model, settings
        self._callback, self._holding = callback, holding
        self._apart = settings.flash_attn == "prefill"
        self._ctx: Context | None = None
        if self._apart and not model.sized:
            raise SwarmKVError(
                f"{model.name} ({model.architecture}): the layout of its state is not known, so that flash_attn="
                "'prefill' cannot change it: pass flash_attn=True or False"
            )

    def into(self, ctx: Context, tokens: np.ndarray, seq_id: int = 0, *, progress: bool = False) -> int:
        """Have these tokens in a context's sequence, which is empty or as the last step left it.

        Returns the bytes of KV state that were copied for it. Errors are those of Context.decode.
        """
        if not self._apart:
            ctx.decode(tokens[ctx.n_past(seq_id) :], seq_id, progress=progress)
            return 0
        snapshot = self.snapshot(tokens, progress=progress)
        with self._holding(snapshot.nbytes):
            snapshot.restore(ctx, seq_id)
        return 3 * snapshot.nbytes  # captured, turned, restored

    def advance(self, tokens: np.ndarray, *, progress: bool = False) -> None:
        """Have these tokens in a context of this one's own."""
        ctx = self._context()
        if len(tokens) > ctx.n_past():
            ctx.decode(tokens[ctx.n_past() :], progress=progress)

    def stopping(self, unless: Callable[[], bool]) -> AbstractContextManager[None]:
        """As Context.stopping, for that context."""
        return self._context().stopping(unless)

    def snapshot(self, tokens: np.ndarray, *, progress: bool = False) -> KVSnapshot:
        """A snapshot of these tokens for contexts with the settings, from a context of this one's own."""
        self.advance(tokens, progress=progress)
        ctx = self._context()
        if not self._apart:
            return KVSnapshot.capture(ctx, tokens)
        with self._holding(2 * ctx.state_bytes()):
            return KVSnapshot.capture(ctx, tokens).without_flash_attention()

    def resume(self, snapshot: KVSnapshot, n_tokens: int) -> None:
        """Begin with the first n_tokens of a snapshot that an earlier prefill with the same settings gave."""
        ctx = self._context()
        if self._apart:  # all of it was computed with flash attention, as this goes on
            rows = other_layout(snapshot.data, self._model.geometry)
            snapshot = KVSnapshot(rows, snapshot.tokens, replace(snapshot.identity, flash_attn=True))
        snapshot.restore(ctx)
        ctx.truncate(n_tokens)

    def _context(self) -> Context:
        if self._ctx is None:
            self._ctx = self.enter_context(self._model.open_context(self._settings))
            self._ctx.callback = self._callback
            self.enter_context(self._holding(self._ctx.nbytes))
        return self._ctx
