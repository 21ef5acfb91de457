"""HTTP requests to others: through which proxy they go, and what an answer may cost.

httpx alone reads the environment's proxies for every client, fails if one of them is a SOCKS proxy, sends requests to
this machine through them, limits the wait for each piece of an answer but not for all of it, and inflates an answer
before its bytes can be counted.
"""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import socket
import urllib.request
import zlib
from typing import Any, Final

import httpx

from services.contracts.errors import ConfigurationError, without_password

_GZIP: Final = zlib.MAX_WBITS | 16


def client_options(url: str) -> dict[str, Any]:
    """Arguments of an httpx client for the host of `url`, with the proxy and certificates of the environment.

    Raises:
        ConfigurationError: they cannot be used for this host.
    """
    parts = httpx.URL(url)
    options: dict[str, Any] = {"trust_env": False, "proxy": _proxy(parts.scheme, parts.host)}
    if parts.scheme == "https":
        try:
            options["verify"] = httpx.create_ssl_context(trust_env=True)
        except OSError as error:
            raise ConfigurationError(
                f"The certificates that SSL_CERT_FILE or SSL_CERT_DIR name cannot be read: {error}.",
                remedy="Correct or unset it.",
                field="SSL_CERT_FILE",
            ) from error
    return options


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is this machine."""
    host = host.strip("[]").rstrip(".").lower()
    try:
        address = ipaddress.ip_address(host if ":" in host else socket.inet_aton(host))  # which reads 127.1 as well
    except (ValueError, OSError):
        return host == "localhost" or host.endswith(".localhost")
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def _proxy(scheme: str, host: str) -> str | None:
    """The environment's proxy for a host. On this machine a proxy has no business in between."""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    named = urllib.request.getproxies()
    proxy = named.get(scheme) or named.get("all")
    if not proxy:
        return None
    url = proxy if "://" in proxy else f"http://{proxy}"
    try:
        if httpx.Proxy(url).url.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
            raise ValueError("SOCKS needs the package socksio")
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigurationError(
            f"The environment's proxy for {host}, {without_password(proxy)}, cannot be used: {error}.",
            remedy=f"Add {host} to NO_PROXY, or let {scheme.upper()}_PROXY name a proxy that starts with http://.",
            field=f"{scheme.upper()}_PROXY",
        ) from error
    return url


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
