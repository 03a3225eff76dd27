"""One family of errors: whatever a caller does wrong ends in a SwarmKVError, never in a dead kernel."""

import difflib
import functools
import inspect
import operator
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

INT32_MAX = 2**31 - 1
_Any = TypeVar("_Any")


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


def not_one_of(value: Any, known: Iterable[str]) -> str:
    """The end of an error's sentence about a name that is not known: which ones are, and which one was meant."""
    known = list(known)
    return f"{_shown(value)} is not one of {', '.join(known)}{did_you_mean(value, known)}"


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


def _shown(value: Any) -> str:
    try:
        return repr(value)[:80]
    except ValueError:  # Python writes out no number of more than 4,300 digits
        return f"a number of {value.bit_length():,} bits"


def public(what: _Any) -> _Any:
    """A function, or a class with its public methods, whose callers we do not know.

    When it fails with an error that is not ours, the arguments are held against their type hints: the first one that is
    of another type is named in a SwarmKVError. A call that succeeds costs a try, and nothing is checked twice.
    """
    if not isinstance(what, type):
        return typing.cast(_Any, _explained(what)) if inspect.isfunction(what) else what
    for name, member in list(vars(what).items()):
        if name.startswith("_") and name != "__init__":
            continue
        if inspect.isfunction(member):
            setattr(what, name, _explained(member))
        elif isinstance(member, classmethod):
            setattr(what, name, classmethod(_explained(member.__func__)))
    return what


def _explained(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        try:
            return function(*args, **named)
        except (SwarmKVError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except Exception as error:
            _explain(function, args, named, error)
            raise

    return call


def _explain(function: Callable[..., Any], args: Any, named: Any, error: Exception) -> None:
    """Raise a SwarmKVError for the first argument that is not of its type."""
    from beartype.door import is_bearable  # takes a tenth of a second, and is needed for this alone

    hints = typing.get_type_hints(function)
    try:
        arguments = inspect.signature(function).bind(*args, **named).arguments
    except TypeError:  # too many, too few, or of unknown names: Python has said it
        return
    for name, value in arguments.items():
        if name in hints and not is_bearable(value, hints[name]):
            wanted = getattr(hints[name], "__name__", None) or str(hints[name]).replace("typing.", "")
            raise SwarmKVError(
                f"{function.__qualname__}: {name} is {value!r:.60} ({type(value).__name__}), and should be {wanted}"
            ) from error


@contextmanager
def refused() -> Iterator[None]:
    """For a demonstration: print the error that the block raises; AssertionError when it raises none."""
    try:
        yield
    except SwarmKVError as error:
        print(f"{type(error).__name__}: {error}")
    else:
        raise AssertionError("this was accepted")
