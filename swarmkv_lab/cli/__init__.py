"""The commands that users type."""

from collections.abc import Sequence

from swarmkv_lab.cli.commands import ask, cache, cluster, serve
from swarmkv_lab.cli.program import run

COMMANDS = (ask, cache, cluster, serve)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the helper's commands: its exit status, as of ``run``."""
    return run(COMMANDS, argv)
