"""swarmkv-lab: the helper's commands, and those of the studies."""

from collections.abc import Sequence

from swarmkv_lab.cli import COMMANDS
from swarmkv_lab.cli.program import program, run
from swarmkv_studies.cli.commands import bench, reproduce, size


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: its exit status, as of ``run``."""
    return run(program(reproduce, *COMMANDS, bench, size), argv)
