"""The files of shards on servers that fsspec knows: gs:// (gcsfs), hf:// (huggingface_hub), http:// and https://.

Each of these packages finds its own credentials. docs/shards.md names the environment variables.
"""

from __future__ import annotations

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
        options = {"client_kwargs": {"headers": {"Accept-Encoding": "identity"}}} if extra == "http" else {}
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
        if self._files.async_impl:
            part: bytes = self._files.cat_file(path, first, first + size)
            return part
        with self._files.open(path, "rb", cache_type="none") as file:  # cat_file would read 5 MiB ahead
            file.seek(first)
            part = file.read(size)
            return part


def _sentence(url: str, error: Exception) -> DataError:
    """Return the error of a package as one line."""
    status = _status(error)
    words = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return DataError(f"{url}: {_REASONS[404]}")
    if isinstance(error, PermissionError) or words.startswith("Forbidden: "):  # the second is gcsfs's
        return DataError(f"{url}: {_REASONS[403]}")
    if status is None or status >= 500 or status in _MAY_PASS:
        # gcsfs and huggingface_hub have made several attempts by themselves, during 20 seconds or more.
        return (Unreachable if url.startswith("http") else DataError)(f"{url}: {words}")
    return DataError(f"{url}: {_REASONS.get(status, words)}")


def _status(error: Exception) -> int | None:
    """Return the HTTP status of an error of aiohttp, gcsfs or huggingface_hub, if it has one."""
    found: Any = getattr(error, "status", None) or getattr(error, "code", None)
    found = found or getattr(getattr(error, "response", None), "status_code", None)
    return int(found) if str(found).isdecimal() else None
