"""The commands that users type. Each loads what it needs when it runs: help and typos are answered at once."""

from collections.abc import Sequence

from swarmkv_lab.cli.ask import ask
from swarmkv_lab.cli.cache import cache
from swarmkv_lab.cli.cluster import cluster
from swarmkv_lab.cli.program import run
from swarmkv_lab.cli.serve import serve

COMMANDS = (ask, cache, cluster, serve)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the helper's commands: its exit status, as of ``run``."""
    return run(COMMANDS, argv)
