"""swarmkv-lab: the lab's command line, for use without Jupyter."""

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.files import reason
from swarmkv_studies.cli.parser import complain


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2, with one line on stderr, for an error that the user can fix."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # on Windows a pipe's is cp1252, which not every answer fits into
            stream.reconfigure(errors="backslashreplace")
    try:
        from swarmkv_studies.cli.commands import (
            parser,  # loads pandas and llama.cpp: Ctrl-C may come in the middle of it
        )

        with _flushed_stdout():
            args = parser().parse_args(argv)
            return args.command(args) or 0
    except BrokenPipeError:  # whoever reads has read enough, as in: swarmkv-lab ... | head -1
        return 1
    except SwarmKVError as error:
        complain(error)
        return 2
    except OSError as error:
        complain(f"{error.filename}: {reason(error)}" if error.filename else error)
        return 2
    except KeyboardInterrupt:
        complain("interrupted")
        return 130


@contextmanager
def _flushed_stdout() -> Iterator[None]:
    """Write out at the end what was printed. If that fails, drop it: Python would fail on it again when it ends."""
    try:
        yield
    finally:
        try:
            if sys.stdout:  # a program that was started without one has None
                sys.stdout.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise
