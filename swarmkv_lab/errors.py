"""One family of errors: whatever a caller does wrong ends in a SwarmKVError, never in a dead kernel."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INT32_MAX = 2**31 - 1


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


def whole_number(name: str, value: Any, least: int = 0, most: int = INT32_MAX) -> int:
    """``value`` as an int, if it is a whole number from least to most; otherwise a SwarmKVError that names it.

    Every number on its way to llama.cpp passes here: ctypes would cut it to 32 bits without a word.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number <= most:
        raise SwarmKVError(f"{name}={_shown(value)}: it must be a whole number from {least:,} to {most:,}")
    return number


def _shown(value: Any) -> str:
    try:
        return repr(value)[:80]
    except ValueError:  # Python writes out no number of more than 4,300 digits
        return f"a number of {value.bit_length():,} bits"


@contextmanager
def refused() -> Iterator[None]:
    """For a demonstration: print the error that the block raises; AssertionError when it raises none."""
    try:
        yield
    except SwarmKVError as error:
        print(f"{type(error).__name__}: {error}")
    else:
        raise AssertionError("this was accepted")
