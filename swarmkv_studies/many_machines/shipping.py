"""Shipping: when does each machine have a document's cache, if it is sent, stored, or computed again?

A message of m bytes takes latency + m / bandwidth, and a machine sends one message at a time, while it may receive
another: the alpha-beta model with one port (R. Hockney, "The communication challenge for MPP", 1994). The network
carries what all machines send at the same time. All times are in seconds, and all are predicted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError, not_one_of, whole_number
from swarmkv_lab.sizing.catalogue import geometry
from swarmkv_lab.sizing.geometry import KVType

PIECES = 64


@dataclass(frozen=True)
class Link:
    """A machine's connection, as fast in both directions. SwarmKVError unless bandwidth > 0 and latency >= 0."""

    bytes_per_s: float
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        _require("bytes_per_s", self.bytes_per_s, "above 0", self.bytes_per_s > 0)
        _require("latency_s", self.latency_s, "finite, and at least 0", 0 <= self.latency_s < math.inf)

    def seconds(self, nbytes: float) -> float:
        """The time of one message, s: latency + bytes / bandwidth."""
        return self.latency_s + nbytes / self.bytes_per_s


@dataclass(frozen=True)
class Document:
    """A document's cache: the bytes of its snapshot, and the seconds that one machine needs to prefill or restore it.

    Raises SwarmKVError for no bytes, and for times that are not finite, or not above 0 (restore_s: below 0).
    """

    nbytes: int
    prefill_s: float
    restore_s: float = 0.0

    def __post_init__(self) -> None:
        whole_number("nbytes", self.nbytes, 1, 1 << 60)
        _require("prefill_s", self.prefill_s, "finite, and above 0", 0 < self.prefill_s < math.inf)
        _require("restore_s", self.restore_s, "finite, and at least 0", 0 <= self.restore_s < math.inf)

    @classmethod
    def of(cls, model: Any, n_tokens: int, tokens_per_s: float, kv_type: KVType = "f16") -> "Document":
        """Of n_tokens in a model: a catalogue name, a GGUF's path, a Model or a KVGeometry. Errors as ``geometry``."""
        n_tokens = whole_number("n_tokens", n_tokens, 1)
        _require("tokens_per_s", tokens_per_s, "above 0", tokens_per_s > 0)
        return cls(geometry(model).snapshot_bytes(n_tokens, kv_type), n_tokens / tokens_per_s)


# -- how the bytes travel: seconds until machine i has them, float64 (n_machines,). Machine 0 has them from the start.


def star(nbytes: float, link: Link, n_machines: int) -> np.ndarray:
    """The holder sends to one machine after another: i messages until machine i has all.

    If its uplink were shared fairly among all of them, each would have all when the last one has it here.
    """
    return np.arange(n_machines) * link.seconds(nbytes)


def tree(nbytes: float, link: Link, n_machines: int) -> np.ndarray:
    """Whoever has all bytes sends them on, so that the holders double in each round: ceil(log2(i + 1)) messages.

    The binomial tree, store and forward, as in MPI's broadcast of short messages (Thakur, Rabenseifner and Gropp,
    "Optimization of Collective Communication Operations in MPICH", 2005).
    """
    return _steps(n_machines, n_machines) * link.seconds(nbytes)


def chunked_tree(nbytes: float, link: Link, n_machines: int, pieces: int = PIECES) -> np.ndarray:
    """As ``tree``, but in equal pieces that are sent on as they come: a pipelined broadcast.

    Each machine sends each piece to d others, so it has all d*(pieces - 1) steps after its first piece. d = 1 is a
    chain, d = 2 a Fibonacci tree, and a large d the binomial tree (Bruck, Cypher and Ho, "Multiple message broadcasting
    with generalized Fibonacci trees", 1992). The d counts with which the last machine has all first.
    """
    degrees = range(1, max(2, (n_machines - 1).bit_length() + 1))
    steps = min((d * (pieces - 1) + _steps(n_machines, d) for d in degrees), key=lambda steps: int(steps[-1]))
    steps[0] = 0
    return steps * link.seconds(nbytes / pieces)


def download(nbytes: float, link: Link, n_readers: int, store_bytes_per_s: float = math.inf) -> float:
    """The time of n_readers that read from an object store at once, s: each at min(its link, the store's / readers)."""
    return Link(min(link.bytes_per_s, store_bytes_per_s / n_readers), link.latency_s).seconds(nbytes)


def join_bound(compute_s: Any, load_s: Any) -> Any:
    """t_c*t_l/(t_c + t_l): the head of a document is computed while its tail is loaded, until the two meet. Arrays too.

    Both go on at an even speed (Jin and others, "Compute Or Load KV Cache? Why Not Both?", ICML 2025). The head costs
    less than its share of a prefill, since it attends to fewer tokens: a measured time can be a little shorter.
    """
    return compute_s * load_s / (compute_s + load_s)


_ROUTES: dict[str, Callable[[float, Link, int], np.ndarray]] = {
    "star": star,
    "tree": tree,
    "chunked tree": chunked_tree,
}
WAYS = ("recompute", *_ROUTES, "object store", "join")


# -- the questions


def arrivals(
    way: str, document: Document, link: Link, n_machines: int, *, warm: bool = True, store_bytes_per_s: float = math.inf
) -> np.ndarray:
    """Seconds until each machine can decode a question over the document, float64 (n_machines,), the earliest first.

    way: recompute (every machine prefills), star, tree, chunked tree, object store, or join (every machine loads from
    the store and computes at the same time). warm: the first machine, or the store, has the snapshot at the start.
    Otherwise the first machine prefills and then sends or uploads; with join, every machine then computes all, as
    nothing can be loaded before a prefill ends. Who received bytes restores them. store_bytes_per_s: of all readers
    together. Raises SwarmKVError for an unknown way, no machines, or a store that gives nothing.
    """
    n = whole_number("n_machines", n_machines, 1)
    _require("store_bytes_per_s", store_bytes_per_s, "above 0", store_bytes_per_s > 0)
    if way not in WAYS:
        raise SwarmKVError(not_one_of(way, WAYS))
    if way == "recompute" or (way == "join" and not warm):
        return np.full(n, document.prefill_s)
    if way in _ROUTES:
        had = _ROUTES[way](document.nbytes, link, n)
    elif warm:
        load_s = download(document.nbytes, link, n, store_bytes_per_s)
        had = np.full(n, load_s if way == "object store" else join_bound(document.prefill_s, load_s))
    else:
        upload_s = download(document.nbytes, link, 1, store_bytes_per_s)
        had = np.full(n, upload_s + download(document.nbytes, link, max(1, n - 1), store_bytes_per_s))
        had[0] = 0
    if warm:
        return had + document.restore_s
    return document.prefill_s + had + np.where(np.arange(n), document.restore_s, 0)  # the first one need not restore


def machine_seconds(way: str, document: Document, ready: np.ndarray, *, warm: bool = True) -> float:
    """The seconds for which machines work until all have the cache: prefills and restores, and not waiting for bytes.

    ready: from ``arrivals``. A machine that recomputes or joins works all the time until it is ready.
    """
    if way in ("recompute", "join"):
        return float(ready.sum())
    restores = len(ready) - (not warm)
    return restores * document.restore_s + (0 if warm else document.prefill_s)


def shipping(document: Document, link: Link, n_machines: int, *, store_bytes_per_s: float = math.inf) -> pd.DataFrame:
    """Ship or recompute? A row per start (warm, cold) and way: predicted latency in seconds, and machine-seconds.

    Columns start, way, first_s, median_s, last_s (until the first, the median and the last machine has the cache) and
    machine_s (for which machines work, in total). Cold, with idle machines, no way is earlier than recomputing:
    sharing then saves machine-seconds, not latency. Arguments and errors as ``arrivals``.
    """
    rows = []
    for start in ("warm", "cold"):
        for way in WAYS:
            warm = start == "warm"
            ready = arrivals(way, document, link, n_machines, warm=warm, store_bytes_per_s=store_bytes_per_s)
            times = {"first_s": ready[0], "median_s": np.median(ready), "last_s": ready[-1]}
            rows.append(
                {"start": start, "way": way, **times, "machine_s": machine_seconds(way, document, ready, warm=warm)}
            )
    return pd.DataFrame(rows)


def break_even_bandwidth(model: Any, n_tokens: int, tokens_per_s: float, kv_type: KVType = "f16") -> float:
    """S/T, bytes per second: over a faster link a snapshot arrives before a prefill would end.

    S: bytes of the snapshot. T: seconds of the prefill; latency and restore are not counted. The more bytes per token
    a model keeps and the faster it prefills, the faster the link must be. Arguments and errors as Document.of.
    """
    document = Document.of(model, n_tokens, tokens_per_s, kv_type)
    return document.nbytes / document.prefill_s


def break_even_table(prefills: Mapping[str, float], depths: Sequence[int]) -> pd.DataFrame:
    """Break-even bandwidths by depth: columns model, depth, bytes_per_s; prefills: tokens per second by model."""
    rows = [(model, depth, break_even_bandwidth(model, depth, speed))
            for model, speed in prefills.items() for depth in depths]  # fmt: skip
    return pd.DataFrame(rows, columns=["model", "depth", "bytes_per_s"])


def crossings(document: Document, link: Link, store_bytes_per_s: float) -> dict[str, float]:
    """The numbers of machines at which two warm ways collapse; each may be infinite.

    star: from so many machines on, the last one would have been earlier with a prefill of its own, 1 + (T - R)/t for a
    message of t. store full: more readers than that share the store's bandwidth. store: from so many machines on, all
    would have been earlier with prefills of their own. T: a prefill, R: a restore.
    """
    message, spare = link.seconds(document.nbytes), document.prefill_s - document.restore_s
    left = spare - link.latency_s
    return {
        "star": 1 + max(0.0, spare) / message if message else math.inf,
        "store full": store_bytes_per_s / link.bytes_per_s if math.isfinite(link.bytes_per_s) else 0.0,
        "store": max(0.0, store_bytes_per_s * left / document.nbytes) if spare > message else 0.0,
    }


def codec_break_even(ratio: Any, compress: Any, decompress: Any) -> Any:
    """The link's bandwidth below which a codec pays: (1 - 1/ratio) / (1/compress + 1/decompress). Arrays too.

    compress and decompress, then, is what a snapshot takes besides its bytes, one after another: S/c + S/(r B) + S/d is
    less than S/B for a slower link B. The unit is that of the two speeds. 0 for a codec that does not make it smaller.
    """
    saved = np.maximum(0.0, 1 - 1 / np.asarray(ratio, float))
    with np.errstate(divide="ignore", invalid="ignore"):  # no work at all: it pays at every bandwidth
        pays = saved / (1 / np.asarray(compress, float) + 1 / np.asarray(decompress, float))
    return np.where(saved > 0, pays, 0.0)[()]


def _steps(n: int, degree: int) -> np.ndarray:
    """The step in which each of n machines gets its first piece, if each sends it in ``degree`` steps after its own."""
    born = [1]
    there = 1
    while there < n:
        born.append(sum(born[-degree:]))
        there += born[-1]
    return np.repeat(np.arange(len(born)), born)[:n]


def _require(name: str, value: Any, what: str, holds: bool) -> None:
    if not holds:
        raise SwarmKVError(f"{name}={value!r:.40}: it must be {what}")
