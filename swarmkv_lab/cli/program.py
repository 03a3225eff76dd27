"""What all commands do alike: help, results for people and for programs, one line for what is wrong, exit status."""

import io
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import click

from swarmkv_lab import __version__
from swarmkv_lab.errors import SwarmKVError

NAME = "swarmkv-lab"
STDOUT = "-"  # the file that --json names for it
Asked = SimpleNamespace
"""What a command was asked: a value for each of its options and arguments."""


class Command(click.Command):
    """A command whose function gets all that was asked in one object, and returns an exit status or None."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        return self.callback and self.callback(Asked(**ctx.params))


class Group(click.Group):
    """Such commands under one name."""

    command_class = Command


def run(commands: Sequence[click.Command], argv: Sequence[str] | None = None) -> int:
    """Run one of a program's commands and return its exit status. Without a command it prints the help.

    2, with one line on stderr, for what the user can mend; 130 after Ctrl-C; 1 if who reads stdout has read enough.
    """
    about = "Prefill a document once, fan its KV cache out to many agents, and measure what that saves."
    whole = Group(NAME, {str(command.name): command for command in commands}, help=about)
    click.version_option(__version__, prog_name=NAME, message="%(prog)s %(version)s")(whole)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # on Windows a pipe's is cp1252, which not every answer fits into
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    looks: dict[str, Any] = {"show_default": True, "terminal_width": min(shutil.get_terminal_size().columns, 100)}
    try:
        with whole.make_context(NAME, arguments, **looks) as context:
            status = whole.invoke(context) or 0
        print(end="", flush=True)
        return status
    except click.exceptions.Exit as ended:  # after --help and --version
        return ended.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else NAME
        complain(f"{error.format_message().rstrip('.'):.600} (see {path} --help)")
    except SwarmKVError as error:
        complain(error)
    except OSError as error:
        if error.filename is None:  # what was printed cannot be written, and Python would try it again when it ends
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # as in: swarmkv-lab ... | head -1
            return 1
        complain(f"{error.filename}: {error.strerror}" if error.filename else error)
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    return 2


def complain(error: object) -> None:
    """One line on stderr."""
    print(f"{NAME}:", *str(error).splitlines(), file=sys.stderr)


def report(asked: Asked, result: Any, text: str) -> None:
    """A command's result: as text, and as JSON where --json says."""
    from swarmkv_lab.files import as_json, replacing

    whole = "" if asked.json is None else as_json(result, indent=1)
    print(whole if asked.json == STDOUT else text)
    if asked.json not in (None, STDOUT):
        with replacing(asked.json) as file:
            file.write(f"{whole}\n".encode())


def table(frame: Any, **looks: Any) -> str:
    """A DataFrame whose index names the rows, as text: in a narrow terminal in several blocks of columns."""
    if frame.index.name:  # beside the other names, and not on a line of its own
        frame = frame.rename_axis(index=None, columns=frame.index.name)
    width = shutil.get_terminal_size(fallback=(0, 0)).columns  # 0: a file or a pipe, which is as wide as it needs
    return str(frame.to_string(formatters=looks, line_width=width or None))
