"""Prefill: a document decoded once in a context of its own, and its snapshot."""

from dataclasses import replace
from typing import Any

import numpy as np
import xxhash

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.llama.context import Context, Tokens
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.snapshot.prefix_cache import PrefixCache
from swarmkv_lab.snapshot.snapshot import KVSnapshot


def prefill(
    model: Model,
    tokens: str | Tokens,
    *,
    behind: str | Tokens | None = None,
    at: int | None = None,
    cache: bool = False,
    progress: bool = True,
    **settings: Any,
) -> KVSnapshot:
    """A snapshot of a document's KV state: its tokens, or its words, as model.read reads them.

    settings: as in Context (n_ctx: by default as many as there are tokens).
    behind, at: for agents that have prompts of their own before the document (fan_out's "composed"). The document is
    prefilled behind this prompt (its tokens, or the system prompt in words; None: behind nothing), and begins at this
    position (by default right behind it): any prompt of at most so many tokens can stand before it later. The snapshot
    holds the document alone, and says what it was behind; it is never cached.

    cache: look for the longest prefix of the tokens that the lab's own folder holds for this model and these settings,
    prefill the rest, and keep the result there. The bits are those of a prefill without it, as only whole batches of a
    shorter prefix are used (and none where layers have a sliding window, whose cells would lie in another order).
    """
    if behind is not None or at is not None:
        if cache:
            raise SwarmKVError("a document behind another prompt is not cached: its bits are that prompt's too")
        return _placed(model, tokens, behind, at, progress, settings)
    ids = model.prefix(tokens)
    chosen = ContextSettings(**settings).sized(len(ids))
    kept = PrefixCache(model, chosen) if cache else None
    found = kept.find(ids) if kept else None
    if found is not None and len(found.tokens) == len(ids):
        return found
    with model.open_context(chosen) as ctx:
        if kept is not None and found is not None:
            found.restore(ctx)
            ctx.truncate(kept.usable(len(found.tokens), len(ids)))
        ctx.decode(ids[ctx.n_past() :], progress=progress)
        snapshot = KVSnapshot.capture(ctx, ids)
    if kept is not None:
        kept.keep(snapshot)
    return snapshot


def _placed(
    model: Model, document: Any, behind: Any, at: int | None, progress: bool, settings: dict[str, Any]
) -> KVSnapshot:
    """The snapshot of a document behind another prompt."""
    ids = model.document(document)
    head = model.head(behind) if behind is not None else ids[:0]
    start = whole_number("at", len(head) if at is None else at, len(head))
    chosen = ContextSettings(**settings).sized(start + len(ids))
    with model.open_context(replace(chosen, n_seq_max=max(2, chosen.n_seq_max))) as ctx:
        place(ctx, ids, head, start, progress=progress)
        return KVSnapshot.capture(ctx, ids)


def place(ctx: Context, document: np.ndarray, head: np.ndarray, at: int, *, progress: bool = False) -> None:
    """Have a document in sequence 0 from a position on, prefilled behind a prompt (head) in sequence 1."""
    if not len(head):
        ctx.decode(document, start=at, progress=progress)
        return
    ctx.decode(head, 1, start=at - len(head))
    ctx.decode(document, 1, progress=progress)
    ctx.share(1, 0, at)
    ctx.clear(1)
    ctx.origins[0] = at, f"behind {len(head):,} tokens ({xxhash.xxh3_64_hexdigest(head.data)})"
