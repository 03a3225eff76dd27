"""Links: how a task in a worker's process reaches those outside of it, on a concurrent.futures.Executor."""

import os
import socket
from dataclasses import dataclass

from swarmkv_lab.cluster.job import Held
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.snapshot.snapshot import KVSnapshot


class NotWanted(SwarmKVError):
    """Nobody waits for this answer any more."""


@dataclass
class Link:
    """A process on the coordinator's machine. It is told to stop by a file, and says nothing before its end."""

    stop_file: str
    threads: int

    def here(self) -> "Link":
        """This, as the task's other threads can use it."""
        return self

    def address(self) -> str:
        """The worker's name."""
        return f"{socket.gethostname()}:{os.getpid()}"

    def n_threads(self) -> int:
        """The worker's share of its machine's cores."""
        return self.threads

    def post(self, *message: object) -> None:
        """Tell the coordinator something while the task goes on."""

    def require_wanted(self) -> None:
        """Raise NotWanted when the coordinator does not wait any more."""
        if os.path.exists(self.stop_file):
            raise NotWanted("the run was ended")

    def fetch(self, held: Held) -> KVSnapshot | None:
        """A snapshot from another worker that has it; None where nobody can be asked."""
        return None
