"""swarmkv-lab: the helper's commands, and those of the studies."""

from collections.abc import Sequence

from swarmkv_lab.cli.commands import ask, cache, cluster, serve
from swarmkv_lab.cli.program import run
from swarmkv_studies.cli import commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: its exit status, as of ``run``."""
    return run([ask, cache, cluster, serve, commands.bench, commands.reproduce, commands.size], argv)
