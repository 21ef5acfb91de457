"""Which way requests to others take."""

from __future__ import annotations

import pytest

from services.contracts.errors import ConfigurationError
from services.contracts.proxies import client_options, is_loopback


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://a.test:81/x", "http://one:1"),
        ("https://a.test", "http://two:2"),
        ("http://b.test", None),
        ("http://c.b.test:81", None),
        ("http://localhost:8400", None),
        ("http://api.localhost", None),
        ("http://127.8.0.1", None),
        ("http://[::1]:8400", None),
        ("http://[::ffff:127.0.0.1]:8400", None),
        ("http://127.1", None),
        ("http://0.0.0.0", None),
        ("http://10.0.0.1", "http://one:1"),
    ],
)
def test_proxies_are_for_other_machines(monkeypatch: pytest.MonkeyPatch, url: str, proxy: str | None) -> None:
    monkeypatch.setenv("HTTP_PROXY", "one:1")
    monkeypatch.setenv("ALL_PROXY", "http://two:2")
    monkeypatch.setenv("NO_PROXY", "b.test")
    assert client_options(url)["proxy"] == proxy


@pytest.mark.parametrize("proxy", ["socks5://user:secret@p:1", "what://p"])
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigurationError, match=r"for a\.test") as caught:
        client_options("http://a.test")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("NO_PROXY", "a.test")
    assert client_options("http://a.test")["proxy"] is None


def test_certificates_that_cannot_be_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
        client_options("https://a.test")
    assert "verify" not in client_options("http://a.test")


def test_names_that_only_look_like_this_machine() -> None:
    assert not any(map(is_loopback, ("localhost.test", "127.0.0.1.test", "notlocalhost", "10.0.0.1", "fe80::1", "")))
