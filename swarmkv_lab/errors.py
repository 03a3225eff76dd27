"""One family of errors: what a caller does wrong ends in a SwarmKVError, never in a dead kernel.

An argument of a wrong type may also end in Python's own TypeError, AttributeError or ValueError.
"""

import difflib
import operator
from collections.abc import Iterable
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
        raise SwarmKVError(f"{name}={value!r:.80}: it must be a whole number from {least:,} to {most:,}")
    return number


def not_one_of(value: Any, known: Iterable[str]) -> str:
    """The end of an error's sentence about a name that is not known: which ones are, and which one was meant."""
    known = list(known)
    return f"{value!r:.80} is not one of {', '.join(known)}{did_you_mean(value, known)}"


def did_you_mean(value: Any, known: Iterable[str]) -> str:
    """The very end of it: the known names that are close to a mistyped one. Empty where none is."""
    close = difflib.get_close_matches(str(value).lower()[:80], list(known), n=2)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def utf8(what: str, text: str) -> bytes:
    """A text as UTF-8; a SwarmKVError that names ``what`` it is where it holds half of a surrogate pair."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SwarmKVError(f"{what} is not valid Unicode at character {error.start}: {error.reason}") from error
