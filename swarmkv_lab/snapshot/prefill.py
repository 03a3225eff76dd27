"""Prefill: a document decoded once in a context of its own, and its snapshot."""

from typing import Any

from swarmkv_lab.llama.context import Tokens
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.snapshot.prefix_cache import PrefixCache
from swarmkv_lab.snapshot.snapshot import KVSnapshot


def prefill(
    model: Model, tokens: str | Tokens, *, cache: bool = False, progress: bool = True, **settings: Any
) -> KVSnapshot:
    """A snapshot of a document's KV state: its tokens, or its words, as model.read reads them.

    settings: as in Context (n_ctx: by default as many as there are tokens).

    cache: look for the longest prefix of the tokens that the lab's own folder holds for this model and these settings,
    prefill the rest, and keep the result there. The bits are those of a prefill without it, as only whole batches of a
    shorter prefix are used (and none where layers have a sliding window, whose cells would lie in another order).
    """
    ids = model.prefix(tokens)
    chosen = ContextSettings.of(**settings).sized(len(ids))
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
