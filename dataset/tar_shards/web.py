"""A shard on a web server, read from any place on. No program is run for it, as webdataset would."""

from __future__ import annotations

import base64
import http.client
import re
import urllib.request
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit

from dataset.tar_shards.resuming import BrokenTransfer, RefusedTransfer, shorten_error

TIMEOUT_SECONDS = 30.0  # without a byte from a server
PASSING = (408, 425, 429)  # of the statuses from 400 to 499, those that another try may change
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
CHUNK = 1 << 20


class WebStream:
    """What a web server sends for `url`, from byte `position` on; a server that knows no ranges sends all before, too.

    Raises BrokenTransfer where it cannot be opened. The handlers are named one by one, so that a server cannot send us
    on to anything but http and https.
    """

    def __init__(self, url: str, position: int = 0) -> None:
        try:
            self.response = _open(url, position)
            self.version, skipped = _describe(self.response, position)
        except HTTPError as error:
            error.close()
            is_final = 400 <= error.code < 500 and error.code not in PASSING
            raise (RefusedTransfer if is_final else BrokenTransfer)(shorten_error(error)) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise BrokenTransfer(shorten_error(error)) from error
        try:
            while skipped:
                data = self.read(min(skipped, CHUNK))
                if not data:
                    raise BrokenTransfer("it is shorter than it was")
                skipped -= len(data)
        except BrokenTransfer:
            self.close()
            raise

    def read(self, size: int) -> bytes:
        """The next bytes, none at the end. Raises BrokenTransfer where the server ends before it said it would."""
        try:
            data = self.response.read(size)
        except (OSError, http.client.HTTPException) as error:
            raise BrokenTransfer(shorten_error(error)) from error
        if not data and self.response.length:
            raise BrokenTransfer(f"the server broke off, {self.response.length:,} bytes before the end")
        return data

    def close(self) -> None:
        self.response.close()


def _open(url: str, position: int) -> http.client.HTTPResponse:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    parts = urlsplit(url)
    account, _, host = parts.netloc.rpartition("@")
    address = quote(parts._replace(netloc=host).geturl(), safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(address)
    if account:  # not sent to where the server may send us on to
        secret = base64.b64encode(unquote(account).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    if position:
        request.add_header("Range", f"bytes={position}-")
    return opener.open(request, timeout=TIMEOUT_SECONDS)


def _describe(response: http.client.HTTPResponse, position: int) -> tuple[tuple[object, ...], int]:
    """(what tells this content from another, how many bytes come that are before `position`)."""
    size, skipped = response.length, position
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != position:
            raise BrokenTransfer("the server sends another part than it was asked for")
        size, skipped = int(match[2]), 0
    return (size, response.headers.get("ETag"), response.headers.get("Last-Modified")), skipped
