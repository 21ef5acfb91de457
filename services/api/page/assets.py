"""The page's files, read once: its modules and styles, addressed by a digest, and plotly.js from its package."""

from __future__ import annotations

import gzip
import hashlib
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.metadata import version
from importlib.resources.abc import Traversable

from services.api.page.catalogue import catalogue
from services.api.page.run_file import run_file_schema

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
ROOT = "/page"
COMPRESSION_LEVEL = 6


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, ready to be sent."""

    media_type: str
    body: bytes
    compressed: bytes
    """The body, compressed with gzip."""


@cache
def static_assets() -> dict[str, Asset]:
    """The page's own files by path below `static`."""
    files = dict(_assets_in(resources.files("services.api.page") / "static"))
    files["run-file.json"] = _asset("run-file.json", run_file_schema())
    return dict(sorted(files.items()))


def _assets_in(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Asset]]:
    for item in folder.iterdir():
        name = prefix + item.name
        if item.is_dir():
            yield from _assets_in(item, f"{name}/")
        elif _ending(name) in MEDIA_TYPES:
            yield name, _asset(name, item.read_bytes())


@cache
def digest() -> str:
    """Digest of the page's own files. Each release has different addresses, so browsers may cache files
    indefinitely."""
    total = hashlib.sha256()
    for name, asset in static_assets().items():
        total.update(name.encode() + b"\0" + asset.body)
    return total.hexdigest()[:16]


@cache
def plotly_asset() -> Asset:
    """plotly.js from the Python package, about 5 MB. Compressing it takes a moment, so call this in a thread."""
    return _asset("plotly.js", (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes())


@cache
def plotly_path() -> str:
    return f"{ROOT}/plotly-{version('plotly')}.min.js"


@cache
def shell() -> Asset:
    """The HTML that `/` answers with."""
    text = (resources.files("services.api.page") / "shell.html").read_text(encoding="utf-8")
    values = {"static": f"{ROOT}/{digest()}", "plotly": plotly_path(), "version": version("turnout")}
    values["metrics"] = catalogue()
    body = string.Template(text).substitute(values).encode()
    return Asset("text/html; charset=utf-8", body, gzip.compress(body, COMPRESSION_LEVEL, mtime=0))


def find_asset(path: str) -> Asset | None:
    """The file at a path under /page/, if there is one."""
    if path == plotly_path():
        return plotly_asset()
    prefix = f"{ROOT}/{digest()}/"
    return static_assets().get(path.removeprefix(prefix)) if path.startswith(prefix) else None


def _asset(name: str, body: bytes) -> Asset:
    return Asset(MEDIA_TYPES[_ending(name)], body, gzip.compress(body, COMPRESSION_LEVEL, mtime=0))


def _ending(name: str) -> str:
    return "." + name.rpartition(".")[2]
