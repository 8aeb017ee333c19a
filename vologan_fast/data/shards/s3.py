"""The files of shards in an S3 bucket, read with boto3.

boto3 finds the bucket and the credentials: AWS_ACCESS_KEY_ID, ~/.aws, or roles. For a store other than Amazon's, set
AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from vologan_fast.config import ConfigError
from vologan_fast.data.errors import DataError
from vologan_fast.data.shards.store import Unreachable

_CONNECTIONS = 64
_COPY = 1 << 20  # bytes
_URL = re.compile(r"s3://(?P<bucket>[^/]+)(?:/(?P<prefix>.*?))?/?")


class Bucket:
    """The objects below s3://bucket/prefix: a Store. Raises ConfigError if boto3 is not installed."""

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
        with _sentences(url, DataError):
            self._client = boto3.session.Session().client("s3", config=Config(max_pool_connections=_CONNECTIONS))

    def url(self, name: str) -> str:
        return f"{self._url}{name}"

    def blocks(self, name: str, first: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of an object, from one request, in blocks of at most _COPY bytes. As Store.blocks."""
        part = {}
        if first > 0 or size is not None:
            part["Range"] = f"bytes={first}-{'' if size is None else first + size - 1}"
        with _sentences(self.url(name), DataError):  # boto3 has made AWS_MAX_ATTEMPTS attempts
            body = self._get(name, **part)["Body"]
        with _sentences(self.url(name), Unreachable), contextlib.closing(body):
            yield from body.iter_chunks(_COPY)

    def _get(self, name: str, **more: Any) -> Any:
        return self._client.get_object(Bucket=self._name, Key=self._prefix + name, **more)


@contextlib.contextmanager
def _sentences(url: str, disconnected: type[DataError]) -> Iterator[None]:
    """Convert an error of boto3 to a DataError of one line, and a lost connection to `disconnected`."""
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
        raise disconnected(f"{url}: {' '.join(str(error).split())}") from None
