"""The lab's files: where they are, how they are read, and atomic writing, on every system.

Writing goes to a temporary file that is flushed to disk, then renamed. Windows neither renames, replaces nor removes a
file that is open: there ours is closed before, and what another program has open is left for later.
"""

import io
import json
import math
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from platformdirs import user_cache_path

from swarmkv_lab.errors import SwarmKVError

try:
    import fcntl
except ImportError:  # Windows: nobody can remove a file that is open, which is as good as a lock
    fcntl = None  # type: ignore[assignment]

CACHE_VARIABLE = "SWARMKV_CACHE"
_PACKAGE = Path(__file__).parent
ROOT = _PACKAGE.parent
_IN_CHECKOUT = (ROOT / "data" / "catalogue.csv").is_file()
DATA = ROOT / "data" if _IN_CHECKOUT else _PACKAGE / "data"  # in the checkout, or inside an installed wheel
REFERENCE = DATA / "reference"
RUNS = (ROOT if _IN_CHECKOUT else Path.cwd()) / "data" / "runs"  # the user's own measurements and exports
_SUFFIX = ".swarmkv-tmp"
_RENAMED_WITHIN_S = 60  # where there are no locks: a temporary file that was written so recently may have a writer
_PAUSES_S = (0.01, 0.04, 0.15, 0.3, 0.5)  # a virus scanner looks at a new file for about so long


def cache_folder(name: str = "") -> Path:
    """The folder for models, twins and cached prefixes, or the folder ``name`` in it; made if it is not there.

    It is $SWARMKV_CACHE, or the user's cache folder. Raises SwarmKVError with the reason if it cannot be made.
    """
    folder = user_path(os.environ.get(CACHE_VARIABLE) or user_cache_path("swarmkv-lab")) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SwarmKVError(
            f"the cache folder {folder} cannot be used: {reason(error)}; set {CACHE_VARIABLE} to a folder"
        ) from error
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

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if hasattr(value, "item"):  # numpy's scalars
            value = value.item()
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=indent, allow_nan=False)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a binary file to write; it replaces the file at ``path`` when the block ends without an error.

    Until then, and after an error, an interrupt or a kill, the old file stays as it was. Temporary files of killed
    processes in the same folder are removed. Raises SwarmKVError with the system's reason if it cannot be written.
    """
    target = writable(path)
    try:
        remove_abandoned(target.parent)
        file = _temporary(target.parent)
        try:
            yield file
            _flush(file)
            if fcntl is None:
                file.close()  # Windows renames no file that is open; elsewhere the lock would end with it
            _replace(file.name, target)
        finally:
            file.close()
            remove(Path(file.name))
        _flush_folder(target.parent)
    except OSError as error:
        kept = "; what was there is unchanged" if target.exists() else ""
        raise SwarmKVError(f"{path} could not be written: {reason(error)}{kept}") from error


def writable(given: str | Path) -> Path:
    """The file to write for a path: where its symbolic links lead, so that they stay.

    Raises SwarmKVError for a name that no file can have, and for anything there that is not a regular file: a folder,
    but also a device or a FIFO, which a rename would replace.
    """
    try:
        path = user_path(given)
        target = Path(os.path.realpath(path))
        with suppress(FileNotFoundError):
            mode = os.stat(path).st_mode  # not the target's: /dev/stdout leads to a pipe, which has no path
            if not stat.S_ISREG(mode):
                raise OSError(None, "it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise SwarmKVError(f"{given} could not be written: {reason(error)}") from error
    return target


def remove(path: Path) -> bool:
    """Remove a file: whether it is gone. Windows removes none that is open, and a folder may be read-only."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files of processes that have ended: a running writer's is locked, or open or new on Windows."""
    for path in folder.glob(f".*{_SUFFIX}"):
        with suppress(OSError):
            if fcntl:
                with open_regular(path) as file:
                    _lock(file)
                    remove(path)
            elif time.time() - path.stat().st_mtime > _RENAMED_WITHIN_S:
                remove(path)


def _temporary(folder: Path) -> BinaryIO:
    """A new file in a folder, locked if the file system has locks (if not, other processes never remove it)."""
    while True:
        file = (folder / f".{secrets.token_hex(8)}{_SUFFIX}").open("xb")
        try:
            _lock(file)
        except BlockingIOError:  # another process saw it before it was locked, and is removing it
            file.close()
            continue
        except OSError:
            return file
        if Path(file.name).exists():
            return file
        file.close()


def _lock(file: BinaryIO) -> None:
    """Take a file's only lock, until it is closed. BlockingIOError: another process has it. OSError: there are none."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _replace(fresh: str, target: Path) -> None:
    """Rename a file onto another. Windows refuses it while a program has one of them open: then it is tried again."""
    for pause in _PAUSES_S:
        with suppress(PermissionError):
            os.replace(fresh, target)
            return
        time.sleep(pause)
    try:
        os.replace(fresh, target)
    except PermissionError as error:
        raise PermissionError(error.errno, f"{reason(error)} (it may be open in another program)") from error


def _flush(file: BinaryIO) -> None:
    """Flush a file to the disk. On macOS fsync leaves it in the drive's cache, and F_FULLFSYNC does not."""
    file.flush()
    os.fsync(file.fileno())
    if hasattr(fcntl, "F_FULLFSYNC"):
        with suppress(OSError):  # a network share may not have it
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)


def _flush_folder(folder: Path) -> None:
    """Flush the folder, so that the rename survives a power failure. Not every system and file system supports this."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
