"""Peers: other ways to reuse a prefix that people use today, each as a Strategy.

Each is set up as its users would set it up, with the lab's threads, batch size, KV types and flash attention.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from swarmkv_lab.errors import SwarmKVError, not_one_of
from swarmkv_lab.fanout.strategies import Strategy
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_studies.peers.build import program
from swarmkv_studies.peers.hugging_face import HUGGING_FACE_PEER, hugging_face, require
from swarmkv_studies.peers.llama_cpp_python import LLAMA_PEERS, llama_cpp_python
from swarmkv_studies.peers.server import SERVER_PEERS

PEERS = (*LLAMA_PEERS, *SERVER_PEERS, HUGGING_FACE_PEER)


@contextmanager
def opened(names: Sequence[str], model: Model, n_ctx: int, **settings: Any) -> Iterator[dict[str, Strategy]]:
    """Yield peers by name, ready for fan_out, bench and sweep; everything that they started ends with the block.

    n_ctx: cells of llama-cpp-python's context. settings: as in Context. A server is started for each run, while the
    run's clock is stopped. Raises SwarmKVError for an unknown name, and if a program or a package is missing.
    """
    for name in names:
        if name not in PEERS:
            raise SwarmKVError(f"peer {not_one_of(name, PEERS)}")
    if lacking := missing(names):
        raise SwarmKVError("; ".join(lacking.values()))
    plan = ContextSettings(n_ctx=n_ctx, **settings)
    ready: dict[str, Strategy] = {name: SERVER_PEERS[name] for name in names if name in SERVER_PEERS}
    with ExitStack() as stack:
        if asked := [name for name in names if name in LLAMA_PEERS]:
            llama = stack.enter_context(llama_cpp_python(model, plan))
            ready |= {name: Strategy(name, partial(LLAMA_PEERS[name], llama)) for name in asked}
        if HUGGING_FACE_PEER in names:
            ready[HUGGING_FACE_PEER] = stack.enter_context(hugging_face(model, plan))
        yield {name: ready[name] for name in names}


def available() -> list[str]:
    """The peers whose programs and packages are installed; what the others need is printed on stderr."""
    lacking = missing(PEERS)
    for name, why in lacking.items():
        print(f"left out: {name}: {why}", file=sys.stderr)
    return [name for name in PEERS if name not in lacking]


def missing(names: Sequence[str]) -> dict[str, str]:
    """Those of these peers that cannot be opened here: {name: reason}."""
    needs = dict.fromkeys(SERVER_PEERS, lambda: program("llama-server")) | {HUGGING_FACE_PEER: require}
    found = {}
    for name in names:
        try:
            needs.get(name, lambda: None)()
        except SwarmKVError as error:
            found[name] = str(error)
    return found
