"""Kind: what a loaded model is, as llama.cpp and the names of its tensors say it, and what can be done with it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import llama_cpp

from swarmkv_lab.errors import SwarmKVError

_NO_ROPE, _PLAIN_ROPE, _AXES = -1, (0, 2), (8, 24, 40)  # llama.cpp's numbers: none; one axis; several (M-RoPE)

# Faults of this llama.cpp, found by a tiny model of each architecture.
_WRONG = {"cogvlm": "llama.cpp returns another token's logits for it, so that its answers would be wrong"}
_ONE_SEQUENCE = {"plamo2"}  # a decode of several sequences ends the process
_ONE_STREAM = {"deepseek4"}  # its state is whole only in a context of one sequence


def written_whole(arch: str, recurrent: bool, window: int, n_tokens: int, swa_full: bool) -> bool:
    """Whether a sequence's state must be asked for as that of all sequences (-1), or llama.cpp leaves some of it out.

    Of one sequence it leaves out what a sliding window has passed, also with swa_full. Restored, the rest would lie
    that much nearer to the cache's beginning, and the softmax add up other cells together: other last bits.
    """
    return arch in _ONE_STREAM or (swa_full and not recurrent and 0 < window < n_tokens)


@dataclass(frozen=True)
class Kind:
    """What decides how a model's sequences can be captured, shared and cut."""

    recurrent: bool  # some layers keep a running state, which has no past to go back to (recurrent, hybrid)
    window: int  # tokens that layers with a sliding window (or in chunks) see; 0: every layer sees all
    rope_type: int  # llama.cpp's number for how positions turn keys: 0 and 2 plain RoPE, 8 and 40 M-RoPE, -1 none
    absolute: bool  # positions are learned: there are none past the trained ones, and none can be moved
    long_rope_from: int | None  # LongRoPE: larger contexts turn keys by other factors; None: no LongRoPE
    packs: bool  # a decode can carry tokens of several sequences
    state_alone: bool  # a sequence's state is whole only in a context of one sequence

    @classmethod
    def of(cls, handle: Any, metadata: Mapping[str, Any], tensors: Collection[str], name: str) -> "Kind":
        """A loaded model's. Raises SwarmKVError for what is no decoder of one token after the other."""
        if llama_cpp.llama_model_has_encoder(handle) or not llama_cpp.llama_model_has_decoder(handle):
            raise SwarmKVError(f"{name} is not a decoder-only model: it has no prefix to share")
        if llama_cpp.llama_model_is_diffusion(handle):
            raise SwarmKVError(f"{name} is a diffusion model: each step changes all tokens, so no prefix stays")
        arch = metadata.get("general.architecture", "")
        if arch in _WRONG:
            raise SwarmKVError(f"{name} ({arch}): {_WRONG[arch]}")
        rope_type: int = llama_cpp.llama_model_rope_type(handle)
        if rope_type not in (_NO_ROPE, *_PLAIN_ROPE, *_AXES):
            raise SwarmKVError(f"{name} has RoPE of type {rope_type}, which this lab has not verified")
        n_train: int = llama_cpp.llama_model_n_ctx_train(handle)
        is_long = any(tensor.startswith("rope_factors_long") for tensor in tensors)
        recurrent = bool(llama_cpp.llama_model_is_recurrent(handle) or llama_cpp.llama_model_is_hybrid(handle))
        return cls(
            recurrent=recurrent,
            window=llama_cpp.llama_model_n_swa(handle),
            rope_type=rope_type,
            absolute=any(tensor.startswith("position_embd") for tensor in tensors),
            long_rope_from=metadata.get(f"{arch}.rope.scaling.original_context_length", n_train) if is_long else None,
            packs=arch not in _ONE_SEQUENCE,
            state_alone=arch in _ONE_STREAM,
        )

    @property
    def no_parts(self) -> str:
        """Why a part of a sequence's cells cannot stand behind another prompt; "" where it can."""
        whole = "its running state is of the whole prompt" if self.recurrent else ""
        absolute = "its positions are not relative" if self.absolute else ""
        return whole or absolute or ("its state is one whole" if self.state_alone else "")

    @property
    def has_axes(self) -> bool:
        """Whether a cell has several coordinates (M-RoPE), which a state then holds too."""
        return self.rope_type in _AXES
