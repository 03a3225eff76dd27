"""The lab's files: where they are, and atomic writing: to a temporary file, flushed to disk, then renamed."""

import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from platformdirs import user_cache_path

from swarmkv_lab.errors import SwarmKVError

try:
    import fcntl
except ImportError:  # Windows does not remove a file that is open, so no lock is needed there
    fcntl = None  # type: ignore[assignment]

CACHE_VARIABLE = "SWARMKV_CACHE"
_PACKAGE = Path(__file__).parent
ROOT = _PACKAGE.parent
_IN_CHECKOUT = (ROOT / "data" / "catalogue.csv").is_file()
DATA = ROOT / "data" if _IN_CHECKOUT else _PACKAGE / "data"  # in the checkout, or inside an installed wheel
REFERENCE = DATA / "reference"
RUNS = (ROOT if _IN_CHECKOUT else Path.cwd()) / "data" / "runs"  # the user's own measurements and exports
_SUFFIX = ".swarmkv-tmp"


def cache_folder() -> Path:
    """The folder for models, twins and cached prefixes: $SWARMKV_CACHE, or the user's cache folder."""
    folder = Path(os.environ.get(CACHE_VARIABLE) or user_cache_path("swarmkv-lab"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
    target = Path(os.path.realpath(path))  # a symbolic link stays, and the file that it points to is replaced
    try:
        if target.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        remove_abandoned(target.parent)
        with _temporary(target) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, target)
            finally:
                Path(file.name).unlink(missing_ok=True)
        _flush_folder(target.parent)
    except OSError as error:
        kept = "; what was there is unchanged" if target.exists() else ""
        raise SwarmKVError(f"{target.name} could not be written: {error.strerror or error}{kept}") from error


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files of processes that have ended: a running writer holds a lock on its file."""
    for path in folder.glob(f".*{_SUFFIX}"):
        with suppress(OSError), path.open("rb") as file:
            _lock(file)
            path.unlink()


def _temporary(target: Path) -> BinaryIO:
    """A new file beside the target, locked if the file system has locks (if not, other processes never remove it)."""
    while True:
        file = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}{_SUFFIX}").open("xb")
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
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _flush_folder(folder: Path) -> None:
    """Flush the folder, so that the rename survives a power failure. Not every file system supports this."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
