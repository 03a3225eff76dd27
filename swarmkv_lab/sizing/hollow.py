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
from typing import Any

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.sizing.geometry import KVType, ggml_type, is_quantized, kv_types, pad
from swarmkv_lab.sizing.gguf_header import read_whole_header

MEASURED = 32_768  # tokens; llama.cpp's mask has a number for every pair: twice as many take four times as long
PERIOD = 8_192  # tokens; windows and compressed caches of today repeat after so many
_STEP = 512
_TIMEOUT_S = 300
_MOST_TOKENS = 1 << 40
_PROGRAM = Path(__file__).parents[1] / "llama" / "hollow.py"
_known: dict[tuple[str, str], tuple[list[int], int]] = {}  # by the sha256 of a header, and settings


def hollow_snapshot_bytes(path: str | Path, n_tokens: int, kv_type: KVType = "f16", **layout: Any) -> int:
    """Bytes of a snapshot of n_tokens, as llama.cpp says of a hollow model; path: of a GGUF or its header, or a URL.

    Layout as in ``hollow``. More than MEASURED tokens are not decoded: up to there the size must have grown by the
    same number in every PERIOD, and goes on so. Raises SwarmKVError, with llama.cpp's reason, for a model that it
    cannot load or that keeps no state, and where the size does not grow evenly; ModelNotFoundError as read_header.
    """
    whole_number("n_tokens", n_tokens, 0, _MOST_TOKENS)
    if n_tokens <= MEASURED:
        return hollow(path, [n_tokens], kv_type, **layout)[0][0]
    periods = -((MEASURED - n_tokens) // PERIOD)
    last = n_tokens - periods * PERIOD
    depths = range(last - 2 * PERIOD, last + 1, _STEP)
    sizes, window = hollow(path, depths, kv_type, **layout)
    grown = {after - before for before, after in zip(sizes, sizes[PERIOD // _STEP :], strict=False)}
    if len(grown) > 1 or window > depths[0]:
        raise SwarmKVError(
            f"{path}: the size at {n_tokens:,} tokens is not known: up to {last:,} it does not grow by the same number "
            f"every {PERIOD:,} tokens; ask for {MEASURED:,} or fewer"
        )
    return sizes[-1] + periods * grown.pop()


def hollow(
    path: str | Path,
    depths: Sequence[int],
    kv_type: KVType = "f16",
    *,
    n_seq_max: int = 1,
    kv_unified: bool = True,
    swa_full: bool = False,
) -> tuple[list[int], int]:
    """(bytes of a sequence's state at each of ``depths`` tokens, which ascend; its sliding window, 0 for none).

    As llama.cpp says of a hollow model, in a context as long as the deepest; settings as in Context, errors as in
    hollow_snapshot_bytes. Takes about a second; what was asked once is remembered.
    """
    key, value = kv_types(kv_type)
    n_seq_max = whole_number("n_seq_max", n_seq_max, 1)
    cells = pad(max(depths[-1], 1)) * (1 if kv_unified else n_seq_max)
    params = {"n_ctx": whole_number("n_ctx", cells, 1), "n_seq_max": n_seq_max, "n_outputs_max": n_seq_max}
    params |= {"type_k": ggml_type(key), "type_v": ggml_type(value), "flash_attn_type": int(is_quantized(value))}
    params |= {"kv_unified": bool(kv_unified), "swa_full": bool(swa_full)}
    asked = {"params": params, "depths": list(depths)}
    pairs, header = read_whole_header(path)
    known = hashlib.sha256(header).hexdigest(), json.dumps(asked)
    if known not in _known:
        done = _told(path, header, asked)
        if done.returncode and (without := _changed(pairs)):
            done = _told(path, header, asked | {"overrides": without})
        if done.returncode:
            said = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
            reason = "; ".join(said[-3:]) or "it said nothing"
            raise SwarmKVError(
                f"{path}: llama.cpp cannot say its sizes (it ended with {done.returncode}): {reason:.400}"
            )
        _known[known] = json.loads(done.stdout)
    sizes, window = _known[known]
    return sizes, window


def _changed(pairs: Mapping[str, Any]) -> dict[str, int]:
    """Without what no cache depends on and llama.cpp makes no hollow tensors of: drafts' layers, hashes of tokens."""
    arch = pairs.get("general.architecture")
    drafts, hashes, layers = f"{arch}.nextn_predict_layers", f"{arch}.hash_layer_count", f"{arch}.block_count"
    changed = {key: 0 for key in (drafts, hashes) if pairs.get(key)}
    return changed | ({layers: pairs.get(layers, 0) - pairs[drafts]} if drafts in changed else {})


def _told(path: str | Path, header: bytes, asked: Mapping[str, Any]) -> "subprocess.CompletedProcess[bytes]":
    """The program, at its end."""
    how: dict[str, Any] = {"input": json.dumps(asked).encode() + b"\n" + header, "capture_output": True}
    how["env"] = os.environ | {"GGML_NO_BACKTRACE": "1"}  # a debugger's view takes seconds and tells a user nothing
    try:
        return subprocess.run([sys.executable, "-P", _PROGRAM], timeout=_TIMEOUT_S, **how)
    except subprocess.TimeoutExpired as error:
        raise SwarmKVError(f"{path}: llama.cpp did not say its sizes within {_TIMEOUT_S} s") from error
