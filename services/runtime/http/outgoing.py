"""Outgoing HTTP requests with bounds on time and size. `services.contracts.proxies` chooses their proxy.

httpx limits the wait for each piece of a response but not the total, and decompresses a response before its bytes can
be counted.
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
    """Send a request and read the complete response.

    Args:
        seconds: limit for the whole request, however slowly the response arrives.
        max_bytes: limit for the body, compressed and decompressed.

    Raises:
        httpx.HTTPError: the request failed or timed out, or the body is too long or not encoded at most once with gzip.
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
        raise httpx.ReadTimeout(f"timed out after {seconds:g} s waiting for the complete response") from error
    encoding = response.headers.get("Content-Encoding", "")
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in _FRAMING]
    body = unpacked(bytes(data), encoding, max_bytes)
    return httpx.Response(response.status_code, headers=headers, content=body, request=response.request)


_FRAMING: Final = frozenset({"content-encoding", "content-length", "transfer-encoding"})


def unpacked(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """The decoded body, without ever holding more than `max_bytes` of it. Raises `httpx.HTTPError`."""
    if encoding.strip().lower() in ("", "identity"):
        return data
    if encoding.strip().lower() not in ("gzip", "x-gzip"):
        raise httpx.DecodingError(f"the response is encoded as {encoding[:60]!r}, which was not requested")
    inflater = zlib.decompressobj(_GZIP)
    try:
        found = inflater.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise httpx.DecodingError(f"the response is not valid gzip: {error}") from error
    if len(found) > max_bytes:
        raise _too_long(max_bytes)
    if not inflater.eof:
        raise httpx.DecodingError("the response's gzip data is truncated")
    return found


def _too_long(max_bytes: int) -> httpx.HTTPError:
    return httpx.RemoteProtocolError(f"the response has more than {max_bytes} bytes")
