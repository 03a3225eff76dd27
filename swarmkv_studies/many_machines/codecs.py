"""Codecs: how small a snapshot's keys and values become on their way, how long that takes, and what it changes."""

import bz2
import lzma
import re
import timeit
import zlib
from collections.abc import Callable, Mapping
from time import process_time
from typing import Any

import numpy as np
import pandas as pd
from gguf.quants import dequantize, quantize

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.model import Model
from swarmkv_lab.progress import tqdm
from swarmkv_lab.sizing.geometry import ggml_type
from swarmkv_lab.snapshot.snapshot import KVSnapshot
from swarmkv_studies.common.divergence import divergence
from swarmkv_studies.kv_sizing.fidelity import predictions

Compressor = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]
"""(compress, decompress)"""
Codec = tuple[Callable[[np.ndarray], Any], Callable[[Any], np.ndarray]]
"""(encode, decode): uint16 (n,), the bits of f16 elements, to bytes or an array of bytes, and back."""


def codecs(
    model: Model,
    tokens: np.ndarray,
    continuation: int = 256,
    *,
    repeats: int = 5,
    others: Mapping[str, Compressor] = {},
) -> pd.DataFrame:
    """Codecs of an f16 snapshot of all but the last ``continuation`` tokens of a document, a row per codec: measured.

    Columns name, bytes (of keys and values, encoded), ratio (raw / encoded), compress_mb_per_s and decompress_mb_per_s
    (10^6 raw bytes per second of one core's time, the best of ``repeats``); and what a restored copy changes of the
    predictions after each token of the continuation: max_abs_logit_diff, kl_mean, kl_max (nats), top1 (share with the
    same arg-max). Of lossless codecs it is enough that the bits come back. q8_0 and q4_0 are ggml's quantization of the
    bytes on their way; "q8_0 cache" and "q4_0 cache" are contexts with that KV type, whose snapshots need no codec
    (infinite speeds). Flash attention is on, but for the row "f16, without flash attention", the noise floor: the same
    cache, other kernels. others: further lossless ones. Raises SwarmKVError for a continuation that is too long, and
    for a lossless codec that loses bits.
    """
    if not 0 < continuation < len(tokens):
        raise SwarmKVError(f"continuation={continuation}: it must be from 1 to {len(tokens) - 1}")
    prefix, rest = tokens[:-continuation], tokens[-continuation:]
    with model.context(len(tokens), flash_attn=True) as ctx:
        ctx.decode(prefix, progress=True)
        snapshot = KVSnapshot.capture(ctx, prefix)
        elements = _elements(snapshot)
        reference = _after(snapshot, ctx, rest)
        rows = []
        for name, codec in tqdm((_lossless(others) | LOSSY).items(), desc="codecs", unit="codec", leave=False):
            row, decoded = _timed(codec, elements, repeats)
            if name in LOSSY:
                row |= _changed(reference, _after(_replaced(snapshot, decoded), ctx, rest))
            elif np.array_equal(decoded, elements):
                row |= {"max_abs_logit_diff": 0.0, "kl_mean": 0.0, "kl_max": 0.0, "top1": 1.0}
            else:
                raise SwarmKVError(f"{name} is no lossless codec: {(decoded != elements).sum():,} elements changed")
            rows.append({"name": name, **row})
    for name, kv_type, flash_attn in ((FLOOR, "f16", False), *((f"{q} cache", q, True) for q in ("q8_0", "q4_0"))):
        with model.context(len(tokens), kv_type=kv_type, flash_attn=flash_attn) as ctx:
            ctx.decode(prefix, progress=True)
            kept = sum(size for _, size in _places(KVSnapshot.capture(ctx, prefix)))
            row = {"bytes": kept, "ratio": elements.nbytes / kept}
            row |= {"compress_mb_per_s": np.inf, "decompress_mb_per_s": np.inf}
            rows.append({"name": name, **row, **_changed(reference, predictions(ctx, rest))})
    return pd.DataFrame(rows)


def pack_12_bits(elements: np.ndarray) -> np.ndarray:
    """f16 elements without the last 4 bits of their mantissa, two in three bytes: uint16 (n,), n even, to uint8."""
    left, right = (elements >> 4).reshape(-1, 2).T
    return np.stack([left >> 4, (left & 15) << 4 | right >> 8, right & 255], axis=1).astype(np.uint8)


def unpack_12_bits(packed: np.ndarray) -> np.ndarray:
    """The elements that were packed, the last 4 bits zero: uint16 (n,)."""
    first, middle, last = packed.astype(np.uint16).T
    return np.stack([first << 8 | (middle >> 4) << 4, (middle & 15) << 12 | last << 4], axis=1).ravel()


def shuffle(elements: np.ndarray) -> bytes:
    """All low bytes, then all high ones: exponents lie together, as in HDF5's shuffle filter."""
    return elements.view(np.uint8).reshape(-1, 2).T.tobytes()


def unshuffle(data: bytes) -> np.ndarray:
    """The elements that were shuffled: uint16 (n,)."""
    return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(2, -1).T).view(np.uint16).ravel()


def _ggml(kv_type: str) -> Codec:
    def encode(elements: np.ndarray) -> np.ndarray:
        return quantize(elements.view(np.float16).astype(np.float32).reshape(-1, 32), ggml_type(kv_type))

    def decode(blocks: np.ndarray) -> np.ndarray:
        return dequantize(blocks, ggml_type(kv_type)).astype(np.float16).view(np.uint16).ravel()

    return encode, decode


FLOOR = "f16, without flash attention"
LOSSY: dict[str, Codec] = {"12 bits": (pack_12_bits, unpack_12_bits), "q8_0": _ggml("q8_0"), "q4_0": _ggml("q4_0")}
_STANDARD: dict[str, Compressor] = {
    "zlib 1": (lambda data: zlib.compress(data, 1), zlib.decompress),
    "zlib 6": (lambda data: zlib.compress(data, 6), zlib.decompress),
    "bz2": (bz2.compress, bz2.decompress),
    "lzma": (lambda data: lzma.compress(data, preset=1), lzma.decompress),
}


def _lossless(others: Mapping[str, Compressor]) -> dict[str, Codec]:
    """Each compressor of bytes as it is, and after a shuffle."""
    table: dict[str, Codec] = {}
    for name, compressor in {**_STANDARD, **others}.items():
        table[name] = _of_bytes(compressor)
        table[f"{name}, shuffled"] = _of_shuffled_bytes(compressor)
    return table


def _of_bytes(compressor: Compressor) -> Codec:
    compress, decompress = compressor
    return lambda elements: compress(elements.tobytes()), lambda data: np.frombuffer(decompress(data), np.uint16)


def _of_shuffled_bytes(compressor: Compressor) -> Codec:
    compress, decompress = compressor
    return lambda elements: compress(shuffle(elements)), lambda data: unshuffle(decompress(data))


def _timed(codec: Codec, elements: np.ndarray, repeats: int) -> tuple[dict[str, float], np.ndarray]:
    """Bytes, ratio and speeds of a codec, and the elements that come back from it."""
    encode, decode = codec
    encoded = encode(elements)
    n_bytes = memoryview(encoded).nbytes
    # processor time, and the best, as whatever else runs only slows it
    seconds = [min(timeit.repeat(call, number=1, repeat=repeats, timer=process_time)) for call in (
        lambda: encode(elements), lambda: decode(encoded)
    )]  # fmt: skip
    speeds = (elements.nbytes / 1e6 / max(each, 1e-6) for each in seconds)  # Windows counts in steps of 16 ms
    sizes = {"bytes": n_bytes, "ratio": elements.nbytes / n_bytes}
    return sizes | dict(zip(("compress_mb_per_s", "decompress_mb_per_s"), speeds, strict=True)), decode(encoded)


def _places(snapshot: KVSnapshot) -> list[tuple[int, int]]:
    """(offset, bytes) of each layer's keys and values in a snapshot."""
    parts = snapshot.state().parts
    rows = parts[parts.part.map(lambda name: re.fullmatch(r"[KV] of layer \d+", name) is not None)]
    return list(zip(rows.offset, rows.bytes, strict=True))


def _elements(snapshot: KVSnapshot) -> np.ndarray:
    """The bits of all keys and values, layer after layer: uint16 (n,)."""
    return np.concatenate([snapshot.data[start : start + size] for start, size in _places(snapshot)]).view(np.uint16)


def _replaced(snapshot: KVSnapshot, elements: np.ndarray) -> KVSnapshot:
    """The snapshot with other keys and values."""
    data, taken = snapshot.data.copy(), elements.view(np.uint8)
    for start, size in _places(snapshot):
        data[start : start + size], taken = taken[:size], taken[size:]
    return KVSnapshot(data, snapshot.tokens, snapshot.identity)


def _after(snapshot: KVSnapshot, ctx: Context, tokens: np.ndarray) -> list[np.ndarray]:
    """The logits after each token that follows the snapshot."""
    snapshot.restore(ctx)
    return predictions(ctx, tokens)


def _changed(reference: list[np.ndarray], logits: list[np.ndarray]) -> dict[str, float]:
    largest = max(float(np.abs(p - q).max()) for p, q in zip(reference, logits, strict=True))
    return {"max_abs_logit_diff": largest, **divergence(reference, logits)}
