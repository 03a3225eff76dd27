"""For a demonstration: what the helper refuses is printed, and the notebook goes on."""

from collections.abc import Iterator
from contextlib import contextmanager

from swarmkv_lab.errors import SwarmKVError


@contextmanager
def refused() -> Iterator[None]:
    """Print the error that the block raises; AssertionError when it raises none."""
    try:
        yield
    except SwarmKVError as error:
        print(f"{type(error).__name__}: {error}")
    else:
        raise AssertionError("this was accepted")
