"""A shard in object storage that speaks S3, such as s3://bucket/train-000000.tar, read by fsspec's s3fs.

Credentials, region and endpoint come from where all programs that speak S3 look: AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY, AWS_PROFILE, ~/.aws/, the role of the machine; AWS_ENDPOINT_URL for other storage than Amazon's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dataset.tar_shards.resuming import BrokenTransfer, RefusedTransfer, shorten_error
from utils import InputError

BLOCK_BYTES = 8 << 20  # that are asked for at a time; each block is a request of its own
ADVICE = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


class ObjectStream:
    """The object at `address`, `s3://bucket/key`, from byte `position` on.

    Raises BrokenTransfer where it cannot be opened, and InputError where s3fs is not installed.
    """

    def __init__(self, address: str, position: int = 0) -> None:
        require_s3fs(address)
        import s3fs

        with _told_in_a_line():
            storage: Any = s3fs.S3FileSystem(use_listings_cache=False)
            self.file: Any = storage.open(address, "rb", block_size=BLOCK_BYTES, cache_type="readahead")
            self.version = (self.file.size, self.file.details.get("ETag"))
            self.file.seek(position)

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end. Raises BrokenTransfer."""
        with _told_in_a_line():
            return self.file.read(size)

    def close(self) -> None:
        self.file.close()


def require_s3fs(address: str) -> None:
    """Raise InputError where s3fs, which reads `address`, is not installed."""
    if importlib.util.find_spec("s3fs") is None:
        raise InputError(f"reading {address[:80]} needs s3fs: pip install -r requirements-shards.txt")


@contextmanager
def _told_in_a_line() -> Iterator[None]:
    """Turn what s3fs and its libraries raise into BrokenTransfer, or RefusedTransfer where another try is in vain."""
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError

    try:
        yield
    except FileNotFoundError as error:
        raise RefusedTransfer("404: there is no such object") from error
    except PermissionError as error:
        raise RefusedTransfer(f"403: these credentials may not read it ({shorten_error(error)})") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise RefusedTransfer(f"no credentials were found: {ADVICE}") from error
    except (OSError, BotoCoreError, ClientError, TimeoutError) as error:
        raise BrokenTransfer(shorten_error(error)) from error
