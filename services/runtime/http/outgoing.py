"""HTTP requests to others: what an answer may cost. `services.contracts.proxies` says which way they go.

httpx alone limits the wait for each piece of an answer but not for all of it, and inflates an answer before its bytes
can be counted.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import Any, Final

import httpx

_GZIP: Final = zlib.MAX_WBITS | 16


async def request(
    client: httpx.AsyncClient, method: str, url: str, *, seconds: float, max_bytes: int, **arguments: Any
) -> httpx.Response:
    """The answer to one request, read to its end.

    Args:
        seconds: time for all of it, however slowly it comes in.
        max_bytes: length of the body, before and after it is inflated.

    Raises:
        httpx.HTTPError: it failed, took longer, or is longer or packed in another way than once by gzip.
    """
    arguments["headers"] = {"Accept-Encoding": "identity", **(arguments.get("headers") or {})}
    try:
        async with (
            asyncio.timeout(seconds),
            client.stream(method, url, timeout=seconds, **arguments) as response,
        ):
            data = bytearray()
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > max_bytes:
                    raise _too_long(max_bytes)
    except TimeoutError as error:
        raise httpx.ReadTimeout(f"no complete answer in {seconds:g} s") from error
    encoding = response.headers.get("Content-Encoding", "")
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in _FRAMING]
    body = unpacked(bytes(data), encoding, max_bytes)
    return httpx.Response(response.status_code, headers=headers, content=body, request=response.request)


_FRAMING: Final = frozenset({"content-encoding", "content-length", "transfer-encoding"})


def unpacked(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """A body without its encoding, never holding more than `max_bytes` of it. Raises `httpx.HTTPError`."""
    if encoding.strip().lower() in ("", "identity"):
        return data
    if encoding.strip().lower() not in ("gzip", "x-gzip"):
        raise httpx.DecodingError(f"the answer is encoded as {encoding[:60]!r}, which was not asked for")
    inflater = zlib.decompressobj(_GZIP)
    try:
        found = inflater.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise httpx.DecodingError(f"the answer is not gzip: {error}") from error
    if len(found) > max_bytes:
        raise _too_long(max_bytes)
    if not inflater.eof:
        raise httpx.DecodingError("the answer's gzip ends too early")
    return found


def _too_long(max_bytes: int) -> httpx.HTTPError:
    return httpx.RemoteProtocolError(f"the answer has more than {max_bytes} bytes")
