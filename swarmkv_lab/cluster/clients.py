"""Clients: which engine stands behind what a caller gives."""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

from swarmkv_lab.cluster.engines import Engine
from swarmkv_lab.cluster.executor import ExecutorEngine
from swarmkv_lab.errors import SwarmKVError

_CLIENTS = "give a Dask Client, or a concurrent.futures.Executor"


@contextmanager
def opened(client: Any) -> Iterator[Engine]:
    """The engine of a Dask Client or an Executor, for one run."""
    engine: Engine
    if isinstance(client, Executor):
        engine = ExecutorEngine(client)
    else:
        try:
            from distributed import Client

            from swarmkv_lab.cluster.dask import DaskEngine
        except ImportError as error:
            raise SwarmKVError(f"{_CLIENTS}; Dask needs: pip install 'swarmkv-lab[cluster]'") from error
        if not isinstance(client, Client):
            raise SwarmKVError(f"client is {client!r:.60}: {_CLIENTS}")
        if client.asynchronous:
            raise SwarmKVError("the client is asynchronous: connect one without asynchronous=True")
        engine = DaskEngine(client)
    try:
        yield engine
    finally:
        engine.close()
