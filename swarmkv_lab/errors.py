"""One family of errors: whatever a caller does wrong ends in a SwarmKVError, never in a dead kernel."""

from collections.abc import Iterator
from contextlib import contextmanager


class SwarmKVError(Exception):
    """Bad input or state. The message says what was wrong, with both sides' numbers, and how to mend it."""


class ModelNotFoundError(SwarmKVError):
    """There is no usable model behind the given path, name or environment variable."""


class ContextBudgetError(SwarmKVError):
    """The tokens asked for do not fit the context, or the context does not fit the memory. Raised before any decode."""


class DecodeError(SwarmKVError):
    """llama.cpp refused or failed a call; carries its return code in words. The sequence is as it was before."""


class SnapshotMismatchError(SwarmKVError):
    """Snapshot and context differ in model, KV types, flash attention, layout or state version; names both sides."""


class SnapshotCorruptError(SwarmKVError):
    """The snapshot's bytes are not what capture wrote."""


@contextmanager
def refused() -> Iterator[None]:
    """For a demonstration: print how what stands below is refused, and fail if it is not."""
    try:
        yield
    except SwarmKVError as error:
        print(f"{type(error).__name__}: {error}")
    else:
        raise AssertionError("this was accepted")
