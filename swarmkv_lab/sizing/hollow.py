"""Sizes of any architecture's cache and state from a header alone: llama.cpp's own, told by a hollow model.

A hollow model (``swarmkv_lab/llama/hollow.py``, a process of its own) has the real header and no weights.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from swarmkv_lab.errors import ContextBudgetError, ModelNotFoundError, SwarmKVError, whole_number
from swarmkv_lab.sizing.gguf_header import read_gguf

MEASURED = 32_768  # tokens; llama.cpp's mask has a number for every pair: twice as many take four times as long
PERIOD = 8_192  # tokens; windows and compressed caches of today repeat after so many
_STEP = 512
CELLS = 1 << 24  # of a context: llama.cpp itself needs some 50 bytes for each
_TIMEOUT_S = 300
_MOST_TOKENS = 1 << 40
_PROGRAM = Path(__file__).parents[1] / "llama" / "hollow.py"


class Hollow(NamedTuple):
    """What llama.cpp says of a hollow model, and of a context on it."""

    context_bytes: int
    """of the context's caches and running states"""
    state_bytes: list[int]
    """of a sequence's state at each of the depths"""
    window: int
    """tokens that a layer with a sliding window keeps; 0: there is none"""
    windowed: list[int]
    """the layers that have one"""


_known: dict[tuple[str, str], Hollow] = {}  # by the sha256 of a header, and what was asked


def hollow_snapshot_bytes(path: str | Path, n_tokens: int, **settings: Any) -> int:
    """Bytes of a snapshot of n_tokens, as llama.cpp says of a hollow model; path: of a GGUF or its header, or a URL.

    Settings as in ``hollow``. More than MEASURED tokens are not decoded: up to there the size must have grown by the
    same number in every PERIOD, and goes on so. Raises SwarmKVError, with llama.cpp's reason, for a model that it
    cannot load or that keeps no state, and where the size does not grow evenly; ModelNotFoundError as read_gguf.
    """
    whole_number("n_tokens", n_tokens, 0, _MOST_TOKENS)
    if n_tokens <= MEASURED:
        return hollow(path, [n_tokens], **settings).state_bytes[0]
    periods = -((MEASURED - n_tokens) // PERIOD)
    last = n_tokens - periods * PERIOD
    depths = range(last - 2 * PERIOD, last + 1, _STEP)
    said = hollow(path, depths, **settings)
    sizes = said.state_bytes
    grown = {after - before for before, after in zip(sizes, sizes[PERIOD // _STEP :], strict=False)}
    if len(grown) > 1 or said.window > depths[0]:
        raise SwarmKVError(
            f"{path}: the size at {n_tokens:,} tokens is not known: up to {last:,} it does not grow by the same number "
            f"in every {PERIOD:,}; ask for {MEASURED:,} or fewer"
        )
    return sizes[-1] + periods * grown.pop()


def hollow_context_bytes(path: str | Path, n_ctx: int, **settings: Any) -> int:
    """Bytes of the caches and running states of a context of n_ctx cells, without allocating them.

    Settings and errors as in hollow_snapshot_bytes; ContextBudgetError for more than CELLS.
    """
    if whole_number("n_ctx", n_ctx, 1, _MOST_TOKENS) > CELLS:
        raise ContextBudgetError(f"{path}: a cache of {n_ctx:,} cells is not sized, of {CELLS:,} it is: ask for fewer")
    return hollow(path, n_ctx=n_ctx, **settings).context_bytes


def hollow(path: str | Path, depths: Sequence[int] = (), **settings: Any) -> Hollow:
    """What llama.cpp says of a hollow model, in a context with these settings (as in Context).

    depths: of the sequence whose state is sized, tokens, ascending; without an n_ctx the context holds the deepest.
    Takes about a second; what was asked once is remembered. Errors as in hollow_snapshot_bytes.
    """
    cells = max(*depths, 1) if depths else 1
    asked = {"settings": {"n_ctx": cells} | settings, "depths": list(depths), "overrides": {}}
    pairs, _, header = read_gguf(path)
    if part := pairs.get("split.no"):
        raise ModelNotFoundError(f"{path} is number {part} of {pairs.get('split.count')}, from 0 on: give number 0")
    known = hashlib.sha256(header).hexdigest(), json.dumps(asked)
    if known not in _known:
        done = _asked_program(path, header, asked)
        if done.returncode and (without := _changed(pairs)):
            done = _asked_program(path, header, asked | {"overrides": without})
        if done.returncode:
            said = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
            reason = "; ".join(said[-3:]) or "it said nothing"
            raise SwarmKVError(
                f"{path}: llama.cpp cannot say its sizes (it ended with {done.returncode}): {reason:.400}"
            )
        _known[known] = Hollow(**json.loads(done.stdout))
    return _known[known]


def _changed(pairs: Mapping[str, Any]) -> dict[str, int]:
    """Without what no cache depends on and llama.cpp makes no hollow tensors of: drafts' layers, hashes of tokens."""
    arch = pairs.get("general.architecture")
    drafts, hashes, layers = f"{arch}.nextn_predict_layers", f"{arch}.hash_layer_count", f"{arch}.block_count"
    changed = {key: 0 for key in (drafts, hashes) if pairs.get(key)}
    return changed | ({layers: pairs.get(layers, 0) - pairs[drafts]} if drafts in changed else {})


def _asked_program(path: str | Path, header: bytes, asked: Mapping[str, Any]) -> "subprocess.CompletedProcess[bytes]":
    """The program, at its end."""
    how: dict[str, Any] = {"input": json.dumps(asked).encode() + b"\n" + header, "capture_output": True}
    how["env"] = os.environ | {"GGML_NO_BACKTRACE": "1"}  # a debugger's view takes seconds and tells a user nothing
    try:
        return subprocess.run([sys.executable, "-P", _PROGRAM], timeout=_TIMEOUT_S, **how)
    except subprocess.TimeoutExpired as error:
        raise SwarmKVError(f"{path}: llama.cpp did not say its sizes within {_TIMEOUT_S} s") from error
