"""The lab's files: where they are, how they are read, and atomic writing, on every system.

Writing goes to a temporary file beside the target, which is flushed to disk and then renamed onto it.
"""

import io
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from platformdirs import user_cache_path

from swarmkv_lab.errors import SwarmKVError

CACHE_VARIABLE = "SWARMKV_CACHE"
ROOT = Path(__file__).parent.parent
_IN_CHECKOUT = (ROOT / "data" / "catalogue.csv").is_file()
DATA = ROOT / ("data" if _IN_CHECKOUT else "swarmkv_lab/data")  # or inside an installed wheel
REFERENCE = DATA / "reference"
RUNS = (ROOT if _IN_CHECKOUT else Path.cwd()) / "data" / "runs"  # the user's own measurements and exports


def cache_folder(name: str = "") -> Path:
    """The folder for models, twins and cached prefixes, or the folder ``name`` in it; made if it is not there.

    It is $SWARMKV_CACHE, or the user's cache folder. Raises SwarmKVError with the reason if it cannot be made.
    """
    folder = user_path(os.environ.get(CACHE_VARIABLE) or user_cache_path("swarmkv-lab")) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        about = f"the cache folder {folder} cannot be used: {reason(error)}; set {CACHE_VARIABLE} to a folder"
        raise SwarmKVError(about) from error
    return folder


def user_path(path: str | Path) -> Path:
    """A path as a user writes it, with ~ for their home."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises where there is no such user


def reason(error: Exception) -> str:
    """What the system says is wrong, in one line, without the path."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a file to read its bytes. Raises OSError, also for a name that no file can have.

    And for what is not a regular file: a FIFO would wait for a writer, and a device might never end.
    """
    flag = getattr(os, "O_NONBLOCK", 0)
    try:
        file = open(user_path(path), "rb", opener=lambda name, flags: os.open(name, flags | flag))  # noqa: SIM115
    except ValueError as error:  # a NUL in the path
        raise OSError(None, str(error)) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(None, "it is not a regular file")
    return file


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file. Raises SwarmKVError with the reason if it cannot be read."""
    try:
        with open_regular(path) as file:
            return io.TextIOWrapper(file, encoding="utf-8-sig").read()  # Windows' editors may begin with a mark
    except UnicodeDecodeError as error:
        raise SwarmKVError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise SwarmKVError(f"{path} could not be read: {reason(error)}") from error


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON text with null for NaN and infinity, which standard JSON does not have."""
    text = json.dumps(value, default=lambda number: number.item())  # numpy's scalars
    return json.dumps(json.loads(text, parse_constant=lambda _: None), indent=indent)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a binary file to write; it replaces the file at ``path`` when the block ends without an error.

    Until then, and after an error, an interrupt or a kill, the old file stays as it was. Raises SwarmKVError with the
    system's reason if it cannot be written.
    """
    target = writable(path)
    try:
        file = target.with_name(f".{secrets.token_hex(8)}.swarmkv-tmp").open("xb")
        try:
            with file:  # Windows renames no file that is open
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, target)
        finally:
            remove(Path(file.name))
    except OSError as error:
        kept = "; what was there is unchanged" if target.exists() else ""
        raise SwarmKVError(f"{path} could not be written: {reason(error)}{kept}") from error


def writable(given: str | Path) -> Path:
    """The file to write for a path: where its symbolic links lead, so that they stay.

    Raises SwarmKVError for a name that no file can have, and for what is not a regular file: a folder, but also a
    device or a FIFO, which a rename would replace.
    """
    try:
        path = user_path(given)
        with suppress(FileNotFoundError):
            mode = os.stat(path).st_mode  # not the target's: /dev/stdout leads to a pipe, which has no path
            if not stat.S_ISREG(mode):
                raise OSError(None, "it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file")
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise SwarmKVError(f"{given} could not be written: {reason(error)}") from error


def remove(path: Path) -> bool:
    """Remove a file: whether it is gone. Windows removes none that is open, and a folder may be read-only."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
        return True
    return False
