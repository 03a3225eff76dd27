"""Peers: what people use instead, behind the strategies' interface: a function that answers a run's agents.

Each is set up as its own users would set it up, with the lab's threads, batch size, KV types and flash attention.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.llama import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.peers.build import program
from swarmkv_lab.peers.llama_cpp_python import LLAMA_PEERS, bound, llama_cpp_python
from swarmkv_lab.peers.server import SERVER_PEERS
from swarmkv_lab.strategies import Strategy

PEERS = (*LLAMA_PEERS, *SERVER_PEERS)


@contextmanager
def opened(names: Sequence[str], model: Model, n_ctx: int, **settings: Any) -> Iterator[dict[str, Strategy]]:
    """Peers by name, ready, for fan_out, bench and sweep; all that they started ends with the block.

    n_ctx: cells of llama-cpp-python's context; settings: as in Context. A server is started for each run, while the
    run's clock stands still. Raises SwarmKVError for a name that is unknown, or a program that was not built.
    """
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise SwarmKVError(f"{', '.join(unknown)}: the peers are {', '.join(PEERS)}")
    if any(name in SERVER_PEERS for name in names):
        program("llama-server")
    with ExitStack() as stack:
        llama = None
        if any(name in LLAMA_PEERS for name in names):
            llama = stack.enter_context(llama_cpp_python(model, ContextSettings(n_ctx, **settings)))
        yield {name: SERVER_PEERS[name] if name in SERVER_PEERS else bound(name, llama) for name in names}
