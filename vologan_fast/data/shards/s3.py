"""Data sets in shards in a bucket: `--data s3://bucket/prefix`.

shards.json and the index files are read when a run begins. During training, whole shards are fetched before they are
needed, into a folder of bounded size (`cache.py`). Other images are read one by one from the bucket: the sample of each
domain whose depth is examined, and the held-out images.

boto3 finds the bucket and the credentials: AWS_ACCESS_KEY_ID, ~/.aws, or roles. For a store other than Amazon's, set
AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vologan_fast.config import ConfigError
from vologan_fast.data.errors import DataError
from vologan_fast.data.records import read_part
from vologan_fast.data.shards.cache import ShardCache
from vologan_fast.data.shards.index import ShardEntry, ShardRecords, open_shards

_CONNECTIONS = 64
_COPY = 1 << 20  # bytes
_URL = re.compile(r"s3://(?P<bucket>[^/]+)(?:/(?P<prefix>.*?))?/?")


class Bucket:
    """The objects below s3://bucket/prefix. All methods raise DataError and may be called from any thread."""

    def __init__(self, url: str) -> None:
        match = _URL.fullmatch(url)
        if match is None:
            raise DataError(f"{url}: expected s3://bucket/prefix")
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise ConfigError(f"{url}: reading from S3 needs boto3: pip install boto3") from None
        self._name, self._prefix = match["bucket"], f"{match['prefix']}/" if match["prefix"] else ""
        self._url = f"s3://{self._name}/{self._prefix}"
        with _sentences(url):
            self._client = boto3.session.Session().client("s3", config=Config(max_pool_connections=_CONNECTIONS))

    def url(self, name: str) -> str:
        return f"{self._url}{name}"

    def read(self, name: str) -> bytes:
        """Return a whole object."""
        with _sentences(self.url(name)):
            data: bytes = self._get(name)["Body"].read()
            return data

    def read_part(self, name: str, offset: int, size: int) -> bytes:
        with _sentences(self.url(name)):
            data: bytes = self._get(name, Range=f"bytes={offset}-{offset + size - 1}")["Body"].read()
        if len(data) != size:
            raise DataError(f"{self.url(name)}: expected {offset + size} bytes or more, found {offset + len(data)}")
        return data

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield a whole object in blocks of at most _COPY bytes."""
        with _sentences(self.url(name)):
            yield from self._get(name)["Body"].iter_chunks(_COPY)

    def _get(self, name: str, **more: Any) -> Any:
        return self._client.get_object(Bucket=self._name, Key=self._prefix + name, **more)


@contextlib.contextmanager
def _sentences(url: str) -> Iterator[None]:
    """Convert an error of boto3 to a DataError of one line."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    reasons = {
        "NoSuchBucket": "there is no such bucket",
        "NoSuchKey": "there is no such object",
        "AccessDenied": "these credentials may not read it",
        "InvalidRange": "it is shorter than its index says",
    }
    try:
        yield
    except NoCredentialsError:
        raise DataError(
            f"{url}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or see ~/.aws"
        ) from None
    except ClientError as error:
        found = error.response.get("Error", {})
        code = found.get("Code", "")
        reason = reasons.get(code) or f"{found.get('Message') or error} ({code})"
        raise DataError(f"{url}: {' '.join(reason.split())}") from None
    except (BotoCoreError, OSError) as error:
        raise DataError(f"{url}: {' '.join(str(error).split())}") from None


@dataclass(frozen=True, eq=False)
class RemoteShard:
    """A tar in a bucket, which may also be in the cache."""

    bucket: Bucket
    cache: ShardCache
    entry: ShardEntry

    def __str__(self) -> str:
        return self.bucket.url(self.entry.file)

    @property
    def size(self) -> int:
        return self.entry.bytes

    @property
    def sha256(self) -> str:
        return self.entry.sha256

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes of the tar, in order. Raises DataError."""
        return self.bucket.blocks(self.entry.file)

    def local(self) -> Path:
        return self.cache.local(self)

    def read(self, offset: int, size: int) -> bytes:
        """Return a part of the tar: from the cache if it is there or being fetched, else from the bucket."""
        if self.cache.has(self):
            with contextlib.suppress(FileNotFoundError):
                return read_part(self.cache.local(self), offset, size)
        return self.bucket.read_part(self.entry.file, offset, size)


def find_remote_records(url: str, cache: ShardCache) -> Mapping[str, ShardRecords]:
    """Return all images of the data set in shards at `url`, by domain.

    Raises DataError, and ConfigError if boto3 is not installed.
    """
    bucket = Bucket(url)
    return open_shards(
        bucket.url("").rstrip("/"), bucket.read, lambda entry: RemoteShard(bucket, cache, entry), _CONNECTIONS
    )
