"""The files of shards on servers that fsspec knows: gs:// (gcsfs), hf:// (huggingface_hub), http:// and https://.

Each of these packages finds its own credentials. docs/shards.md names the environment variables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vologan_fast.config import ConfigError
from vologan_fast.data.errors import DataError
from vologan_fast.data.shards.store import Unreachable

_COPY = 8 << 20
"""Bytes of a request. Each request opens a file anew, so they are larger than in s3.py."""
_PACKAGES = {"gs": ("gcsfs", "gcs"), "hf": ("huggingface_hub", "hf"), "http": ("aiohttp", "http")}
"""For each scheme: the package that reads it, and our extra that installs the package."""
_REASONS = {
    401: "these credentials may not read it",
    403: "these credentials may not read it",
    404: "there is no such file",
}
_MAY_PASS = (408, 429)
"""HTTP statuses below 500 after which another attempt may succeed: a timeout, and too many requests."""
_BEYOND_THE_END = 416


class FileSystem:
    """The files below a URL of fsspec: a Store. Raises ConfigError if the package for its scheme is not installed."""

    def __init__(self, url: str) -> None:
        if "::" in url or "?" in url or "#" in url or url.endswith("://"):  # fsspec opens archives in URLs by ::
            raise DataError(f"{url}: expected a URL without ::, ? and #, such as gs://bucket/prefix")
        scheme = url.partition("://")[0]
        package, extra = _PACKAGES.get(scheme.removesuffix("s") if scheme == "https" else scheme, ("fsspec", "http"))
        # aiohttp unpacks answers that a server has compressed, but the bytes of a part must be those of the file.
        client = {"headers": {"Accept-Encoding": "identity"}, "auto_decompress": False}
        self._http = scheme in ("http", "https")
        options = {"client_kwargs": client} if self._http else {}
        try:
            from fsspec.core import url_to_fs

            self._files, path = url_to_fs(url.rstrip("/"), skip_instance_cache=True, **options)
            if not self._files.async_impl:
                self._files.ls(path)  # huggingface_hub would else ask for the size at each opening
        except ImportError:
            needs = f"pip install 'vologan-fast[{extra}]'"
            raise ConfigError(f"{url}: reading from {scheme}:// needs {package}: {needs}") from None
        except Exception as error:  # a URL that the package cannot read, or no credentials
            raise _sentence(url, error) from None
        self._url, self._path = f"{url.rstrip('/')}/", f"{path.rstrip('/')}/"

    def url(self, name: str) -> str:
        return f"{self._url}{name}"

    def blocks(self, name: str, first: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a file, in one request for each block of at most _COPY bytes. As Store.blocks."""
        end = None if size is None else first + size
        while end is None or first < end:
            wanted = _COPY if end is None else min(_COPY, end - first)
            try:
                block = self._part(self._path + name, first, wanted)
            except DataError:
                raise
            except Exception as error:  # each package has its own errors
                if _status(error) == _BEYOND_THE_END:
                    return
                raise _sentence(self.url(name), error) from None
            if len(block) > wanted:
                raise DataError(
                    f"{self.url(name)}: expected {wanted} bytes, as asked for, found {len(block)}; "
                    "the server must answer requests for parts of a file (HTTP ranges)"
                )
            yield block
            first += len(block)
            if len(block) < wanted:
                return

    def _part(self, path: str, first: int, size: int) -> bytes:
        if self._http:
            from fsspec.asyn import sync

            answer: bytes = sync(self._files.loop, self._answer, path, first, size)
            return answer
        if self._files.async_impl:
            part: bytes = self._files.cat_file(path, first, first + size)
            return part
        with self._files.open(path, "rb", cache_type="none") as file:  # cat_file would read 5 MiB ahead
            file.seek(first)
            part = file.read(size)
            return part

    async def _answer(self, url: str, first: int, size: int) -> bytes:
        """Return `size` bytes from `first` on of an answer over HTTP, or fewer at the file's end.

        At most `size` bytes of a wrong answer are read, with what the connection has buffered. fsspec reads all of it.
        """
        session = await self._files.set_session()
        wanted = {"Range": f"bytes={first}-{first + size - 1}"}
        async with session.get(self._files.encode_url(url), headers=wanted) as answer:
            answer.raise_for_status()
            expected = _announced(answer.status, answer.headers, first, size)
            if expected is None:
                found = answer.headers.get("Content-Range", answer.headers.get("Content-Encoding", "the whole file"))
                raise DataError(
                    f"{url}: expected {size} bytes from byte {first} on, as asked for, found {found} (status "
                    f"{answer.status}); the server must answer requests for parts of a file (HTTP ranges)"
                )
            data = bytearray()
            async for block in answer.content.iter_any():
                data += block
                if len(data) > expected:
                    raise DataError(f"{url}: expected {expected} bytes from byte {first} on, found more")
            if answer.status == 206 and len(data) < expected:
                raise Unreachable(f"{url}: the connection ended after {len(data)} of {expected} bytes")
            return bytes(data)


def _announced(status: int, headers: Any, first: int, size: int) -> int | None:
    """Return the largest length of an answer over HTTP, by its headers. None if it is not the part that was asked for.

    A server may answer with the whole file, status 200, if the file has at most `size` bytes. RFC 9110, section 14.
    """
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        return None
    if status == 200 and first == 0 and int(headers.get("Content-Length", 0)) <= size:
        return size
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", headers.get("Content-Range", ""))
    if status != 206 or match is None or int(match[1]) != first:
        return None
    end = int(match[2]) + 1
    ends = range(first + 1, first + size + 1) if match[3] == "*" else [min(first + size, int(match[3]))]
    return end - first if end in ends else None


def _sentence(url: str, error: Exception) -> DataError:
    """Return the error of a package as one line."""
    if type(error).__name__ == "TooManyRedirects":
        return DataError(f"{url}: expected a file, found redirects without end")
    status = _status(error)
    words = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return DataError(f"{url}: {_REASONS[404]}")
    if isinstance(error, PermissionError) or words.startswith("Forbidden: "):  # the second is gcsfs's
        return DataError(f"{url}: {_REASONS[403]}")
    if url.startswith("http") and (isinstance(error, ValueError) or "Redirect" in type(error).__name__):
        return DataError(f"{url}: expected it, and what it redirects to, to be http:// or https:// URLs, found {words}")
    if status is None or status >= 500 or status in _MAY_PASS:
        # gcsfs and huggingface_hub have made several attempts by themselves, during 20 seconds or more.
        return (Unreachable if url.startswith("http") else DataError)(f"{url}: {words}")
    return DataError(f"{url}: {_REASONS.get(status, words)}")


def _status(error: Exception) -> int | None:
    """Return the HTTP status of an error of aiohttp, gcsfs or huggingface_hub, if it has one."""
    found: Any = getattr(error, "status", None)
    found = getattr(error, "code", None) if found is None else found
    found = found or getattr(getattr(error, "response", None), "status_code", None)
    return int(found) if str(found).isdecimal() else None
