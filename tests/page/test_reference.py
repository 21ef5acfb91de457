"""The REST reference at /docs in a real Chromium: complete, offline, under the strict content security policy."""

from __future__ import annotations

import json
import urllib.request
from importlib.metadata import version

from tests.page.conftest import Api
from tests.page.visitor import Visitor


def test_the_reference_shows_every_operation_and_tries_them(api: Api, browser: Visitor) -> None:
    with urllib.request.urlopen(f"{api.url}/openapi.json", timeout=30) as answer:
        document = json.load(answer)
    assert document["info"]["version"] == version("turnout")
    operations = {(path, method) for path, item in document["paths"].items() for method in item}
    assert len(operations) > 18
    browser.go("docs")
    shown = "return [...document.querySelectorAll('.opblock')].map(o => [o.querySelector('.opblock-summary-path')" + (
        ".dataset.path, o.querySelector('.opblock-summary-method').textContent.toLowerCase()])"
    )
    browser.until(lambda: {tuple(item) for item in browser.run(shown)} == operations, "all operations")
    block = "document.querySelector('[data-path=\"/healthz\"]').closest('.opblock')"
    for button in (".opblock-summary-control", ".try-out__btn", ".execute"):
        browser.until(lambda button=button: browser.run(f"return {block}.querySelector('{button}')"), button)
        browser.run(f"{block}.querySelector('{button}').click()")
    browser.until(lambda: "api-0" in browser.run(f"return {block}.textContent"), "the answer")
    loaded = browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith(api.url)] == []
    assert browser.run("return document.querySelectorAll('.auth-wrapper .authorize').length") == 1
