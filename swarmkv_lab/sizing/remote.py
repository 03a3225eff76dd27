"""The beginning of a file that a web server has, as far as it is read."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from swarmkv_lab.errors import ModelNotFoundError

if TYPE_CHECKING:
    import httpx

DEADLINE_S = 60.0  # for all of it
_TIMEOUT_S = 10.0  # for a connection, and for the next bytes of it


def is_url(source: str | Path) -> bool:
    """Whether a model's source is an http or https URL."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


@contextmanager
def beginning(url: str, most: int) -> Iterator[Iterator[bytes]]:
    """The bytes of a file behind a URL as they come, ``most`` or fewer; at the block's end no more are fetched.

    Raises ModelNotFoundError, also while they come, where the server does not answer, has no such file, or takes more
    than DEADLINE_S.
    """
    import httpx  # of a second's import it is a third, and hardly anybody asks for a URL

    asked = {"Range": f"bytes=0-{most - 1}", "Accept-Encoding": "identity"}
    try:
        with httpx.stream("GET", url, headers=asked, follow_redirects=True, timeout=_TIMEOUT_S) as response:
            if not response.is_success:
                raise ModelNotFoundError(f"{url}: the server has no such file (it answered {response.status_code})")
            yield _in_time(url, response)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ModelNotFoundError(f"{url} cannot be read: {error or type(error).__name__}") from error


def _in_time(url: str, response: "httpx.Response") -> Iterator[bytes]:
    deadline = time.monotonic() + DEADLINE_S
    for chunk in response.iter_raw():
        yield chunk
        if time.monotonic() > deadline:
            raise ModelNotFoundError(f"{url} took more than {DEADLINE_S:g} s")
