"""Links: when workers have a document that others send them over slow links, measured and predicted."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.cluster.dask import DaskLink, serve
from swarmkv_lab.cluster.job import Held
from swarmkv_lab.cluster.resident import RESIDENT
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.snapshot.prefill import prefill
from swarmkv_studies.many_machines.shipping import Document, Link, arrivals


def arrival_times(
    client: Any, model: Model, tokens: np.ndarray, bytes_per_s: Sequence[float], *, repeats: int = 2
) -> pd.DataFrame:
    """Send a document from one worker to all others over uplinks of so many bytes per second, as a star and as a tree.

    client: of a Dask cluster with two workers or more. Each snapshot is verified and restored where it arrives.
    Returns a row per bandwidth, way, repeat and worker: bytes, arrived_s (measured, since all asked) and predicted_s
    (analysis.shipping; the measured time of an unthrottled transfer is what a message takes besides its bytes).
    """
    workers = list(client.nthreads())
    source = str(model.path)
    held = client.submit(capture, source, tokens, workers=workers[:1], pure=False).result()
    serve(client)
    for _ in range(2):  # the first time, contexts and connections are made
        fixed = _arrivals(client, source, held, workers, "star")
    restore_s = float(min(fixed)) if fixed else 0.0
    rows = []
    for rate in bytes_per_s:
        serve(client, uplink=rate)
        star = Document(held.nbytes, 1.0, restore_s), Link(rate)
        tree = Document(held.nbytes, 1.0), Link(rate, restore_s)  # whoever sends on has verified and restored
        for repeat in range(repeats):
            for way, asked in {"star": star, "tree": tree}.items():
                predicted = arrivals(way, *asked, len(workers))[1:]
                for i, (measured, told) in enumerate(
                    zip(sorted(_arrivals(client, source, held, workers, way)), predicted, strict=True), 1
                ):
                    rows.append(
                        {"bandwidth": rate, "way": way, "repeat": repeat, "worker": i, "bytes": held.nbytes,
                         "arrived_s": measured, "predicted_s": float(told)}
                    )  # fmt: skip
    serve(client)
    return pd.DataFrame(rows)


def _arrivals(client: Any, source: str, held: Held, workers: list[str], way: str) -> list[float]:
    """Seconds until each of the other workers has the document. In a tree, whoever has it sends it on."""
    client.run(_forget, workers=workers[1:])
    start = time.monotonic()
    futures: list[Any] = []
    senders: dict[int, str] = {}
    for i, worker in enumerate(workers[1:], 1):
        senders[i] = sender = workers[0] if way == "star" else workers[i - (1 << (i.bit_length() - 1))]
        before = [j for j in range(1, i) if senders[j] == sender and way == "tree"]  # a round begins when the last ends
        after = [futures[j - 1] for j in (*before[-1:], *([workers.index(sender)] if sender != workers[0] else []))]
        one = Held(held.name, held.n_tokens, held.nbytes, (sender,))
        futures.append(client.submit(_fetch, source, one, start, *after, workers=[worker], pure=False))
    return [float(seconds) for seconds in client.gather(futures)]


def capture(source: str, tokens: np.ndarray) -> Held:
    """A worker's task: prefill a document and hold it."""
    from distributed import get_worker

    with RESIDENT.lock:
        snapshot = prefill(RESIDENT.model(source, 0), tokens, progress=False)
        RESIDENT.hold("measured", snapshot)
    return Held("measured", len(tokens), snapshot.nbytes, (get_worker().address,))


def _forget() -> None:
    with RESIDENT.lock:
        RESIDENT.let_go()


def _fetch(source: str, held: Held, since: float, *after: float) -> float:
    """Seconds since a moment (time.monotonic(), which one machine's processes share)."""
    with RESIDENT.lock:
        model = RESIDENT.model(source, 0)
        snapshot = DaskLink("", 0).here().fetch(held)
        assert snapshot is not None
        with model.open_context(ContextSettings(n_ctx=held.n_tokens)) as ctx:
            snapshot.restore(ctx)
        RESIDENT.hold(held.name, snapshot)
    return time.monotonic() - since
