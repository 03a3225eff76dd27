"""The beginning of a file that a web server has, by HTTP range requests, as far as it is read."""

import os
import re
import time
from functools import lru_cache
from pathlib import Path

import httpx

from swarmkv_lab.errors import ModelNotFoundError

MOST_BYTES = 1 << 26  # a header with the largest vocabulary of today has about 20 MB
DEADLINE_S = 60.0  # for all of it
_BLOCK = 1 << 20
_TIMEOUT_S = 10.0  # for a connection, and for the next bytes of it


def is_url(source: str | Path) -> bool:
    """Whether a model's source is an http or https URL."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


@lru_cache(maxsize=4)
def remote(url: str) -> "Remote":
    """The file behind a URL; what was read of it once is not asked for again.

    Raises ModelNotFoundError, also while it is read, where the server does not answer, knows no such file or no
    ranges, and where it takes more than MOST_BYTES or DEADLINE_S.
    """
    return Remote(url)


class Remote:
    """A file that is read from its beginning; more of it is fetched when that is needed, in growing blocks."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.size = 0
        """bytes of the whole file, as the server says"""
        self._data = bytearray()
        self._at = 0
        self._deadline = time.monotonic() + DEADLINE_S
        self._fetch(_BLOCK)

    def read(self, n: int) -> bytes:
        """The next n bytes."""
        end = self._at + n
        while len(self._data) < min(end, self.size):
            self._fetch(max(end, 2 * len(self._data)))
        data = bytes(self._data[self._at : end])
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go on reading at another place; counted from the beginning, or from here (SEEK_CUR)."""
        self._at = offset + (self._at if whence == os.SEEK_CUR else 0)
        return self._at

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def _fetch(self, end: int) -> None:
        """Have the file up to ``end``, or to its end."""
        first = len(self._data)
        if end > MOST_BYTES and (end := MOST_BYTES) <= first:
            raise ModelNotFoundError(f"{self.url}: its header has more than {MOST_BYTES:,} bytes: fetch the file")
        asked = {"Range": f"bytes={first}-{end - 1}", "Accept-Encoding": "identity"}
        try:
            with httpx.stream("GET", self.url, headers=asked, follow_redirects=True, timeout=_TIMEOUT_S) as response:
                self._check(response, first)
                for chunk in response.iter_raw():
                    self._data += chunk[: end - len(self._data)]
                    if time.monotonic() > self._deadline:
                        raise ModelNotFoundError(f"{self.url} took more than {DEADLINE_S:g} s")
                    if len(self._data) >= end:
                        break
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise ModelNotFoundError(f"{self.url} cannot be read: {error or type(error).__name__}") from error
        if len(self._data) == first:
            raise ModelNotFoundError(f"{self.url} gave none of its bytes from {first:,} on")

    def _check(self, response: httpx.Response, first: int) -> None:
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            about = "gives no part of a file, so fetch all of it" if response.is_success else "has no such file"
            raise ModelNotFoundError(f"{self.url}: the server {about} (it answered {response.status_code})")
        said = response.headers.get("content-range", "")
        given = re.fullmatch(r"bytes (\d{1,19})-\d{1,19}/(\d{1,19})", said)
        if not given or int(given[1]) != first or self.size not in (0, int(given[2])):
            raise ModelNotFoundError(f"{self.url}: bytes from {first:,} on were asked for, and {said!r:.60} was given")
        self.size = int(given[2])
