"""Hosts and ports in URLs and sockets: IPv6 has brackets in the one and none in the other."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import httpx
import pytest

from services.runtime.address import authority, free_port, host_of, listen_on, port_is_free, url_of
from services.runtime.settings import Settings


@pytest.mark.parametrize(
    ("text", "host", "url"),
    [
        ("127.0.0.1", "127.0.0.1", "http://127.0.0.1:80"),
        ("", "127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "0.0.0.0", "http://127.0.0.1:80"),
        ("::", "::", "http://[::1]:80"),
        ("::1", "::1", "http://[::1]:80"),
        ("[::1]", "::1", "http://[::1]:80"),
        ("0:0:0:0:0:0:0:1", "::1", "http://[::1]:80"),
        ("[2001:DB8::7]", "2001:db8::7", "http://[2001:db8::7]:80"),
        ("fe80::1%eth0", "fe80::1%eth0", "http://[fe80::1%25eth0]:80"),
        ("localhost", "localhost", "http://localhost:80"),
        ("rollout-0.example", "rollout-0.example", "http://rollout-0.example:80"),
    ],
)
def test_a_host_is_read_and_written(text: str, host: str, url: str) -> None:
    assert Settings(host=text).host == host_of(text) == host
    assert url_of(host, 80) == url
    assert httpx.URL(url).host
    assert urlsplit(url).port or url.endswith(":80")
    assert urlsplit(f"//{authority(host, 8400)}").port == 8400


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::", "localhost"])
def test_who_listens_is_reached_under_its_url(host: str) -> None:
    if not port_is_free(host, 0):
        pytest.skip(f"this machine has no {host}")
    with listen_on(host, 0) as server:
        server.listen()
        port = server.getsockname()[1]
        assert not port_is_free(host, port)
        parts = urlsplit(url_of(host, port))
        socket.create_connection((parts.hostname, parts.port), timeout=5).close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_a_free_port_is_not_given_to_others_and_a_server_may_have_it(host: str) -> None:
    port = free_port(host)
    assert port not in {free_port(host) for _ in range(20)}
    listen_on(host, port).close()


def test_a_host_elsewhere_has_no_free_port() -> None:
    assert free_port("192.0.2.1") == 0
