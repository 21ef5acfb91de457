"""Selects proxy and certificates of outgoing HTTP requests, in the same way for the client and the services.

httpx alone reads the environment's proxies for every client, fails if one of them is a SOCKS proxy, and sends requests
to this machine through them.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import socket
import urllib.request
from typing import Any

import httpx

from services.contracts.errors import ConfigurationError, without_password


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
    """The environment's proxy for a host; none for this machine."""
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
