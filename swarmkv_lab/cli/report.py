"""What commands print: text and tables for people, or JSON for programs."""

import shutil
from typing import Any

from swarmkv_lab.cli.options import STDOUT
from swarmkv_lab.cli.program import Asked


def say(asked: Asked, text: str) -> None:
    """Print what people read; not where --json has stdout to itself."""
    if asked.json != STDOUT:
        print(text)


def report(asked: Asked, result: Any, text: str) -> None:
    """A command's result: as text, and as JSON where --json says."""
    from swarmkv_lab.files import as_json, replacing

    say(asked, text)
    if asked.json == STDOUT:
        print(as_json(result, indent=1))
    elif asked.json is not None:
        with replacing(asked.json) as file:
            file.write(f"{as_json(result, indent=1)}\n".encode())


def table(frame: Any, **looks: Any) -> str:
    """A DataFrame whose index names the rows, as text: in a narrow terminal in several blocks of columns."""
    if frame.index.name:  # beside the other names, and not on a line of its own
        frame = frame.rename_axis(index=None, columns=frame.index.name)
    width = shutil.get_terminal_size(fallback=(0, 0)).columns  # 0: a file or a pipe, which is as wide as it needs
    return str(frame.to_string(formatters=looks, line_width=width or None))
