"""Model: a GGUF loaded once, and the contexts that decode with it."""

import weakref
from pathlib import Path
from typing import Any

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.guard import LlamaGuard
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.llama.weights import Weights


class Model(Weights):
    """A GGUF model: weights, tokenizer, chat template and KV geometry (see Weights), and its contexts.

    ``n_gpu_layers``: layers to offload, -1 for all (nothing happens on a CPU build), 0 to leave the GPU alone.
    ``guard_per_context=True`` gives each context a lock of its own, so that contexts run in parallel threads; exact on
    CPU, refused on a GPU.
    Close it, or leave a ``with`` block, to free the weights; its contexts are closed first.
    """

    def __init__(self, path: str | Path, *, n_gpu_layers: int = -1, guard_per_context: bool = False) -> None:
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self.guard_per_context = guard_per_context
        super().__init__(path, n_gpu_layers)
        if guard_per_context and self.on_gpu:
            self.close()
            raise SwarmKVError("guard_per_context=True needs n_gpu_layers=0: contexts on one GPU share its queue")

    def context(self, n_ctx: int, **settings: Any) -> Context:
        """A new Context of n_ctx tokens; see Context for n_seq_max, kv_type, flash_attn, n_batch and n_threads."""
        return self.open_context(ContextSettings.of(n_ctx=n_ctx, **settings))

    def open_context(self, settings: ContextSettings) -> Context:
        """A new Context with these settings."""
        with self.guard:  # or close() could come between the context and its entry in the list
            context = Context(self, settings, LlamaGuard() if self.guard_per_context else self.guard)
            self._contexts.add(context)
        return context

    def close(self) -> None:
        """Free the contexts, then the weights. Safe to call twice; waits for what other threads are doing.

        Raises SwarmKVError when it is called from inside one of its own calls (a callback, a signal handler).
        """
        with self.guard:
            contexts = list(self._contexts)
            for context in contexts:  # all of them before the first is waited for, or gone
                context.require_idle()
            for context in contexts:
                context.close()
            super().close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
