"""A user's actions on the page: go, see, press, type, look."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException, TimeoutException
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

T = TypeVar("T")
WAIT_SECONDS = 30.0
"""Only ends a test that would fail anyway."""
WIDE = (1280, 900)
PHONE = (360, 740)

AXE = Path("node_modules/axe-core/axe.min.js")
CHECK = """
const [done] = [...arguments].slice(-1);
axe.run(document, {
  runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'],
  resultTypes: ['violations'],
}).then(({ violations }) => done(violations.map(({ id, help, nodes }) => `${id}: ${help}: `
  + nodes.slice(0, 4).map((n) => n.html.slice(0, 160) + n.any.map((one) => ` ${one.message}`)))));"""
"""What axe-core says against the page: WCAG 2.2 A and AA, and its own advice."""


class Visitor:
    """Drives one browser tab."""

    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver = driver
        self.url = url

    def reset(self) -> None:
        self.leave()
        self.dark(False)
        self.resize(*WIDE)
        self._log()  # discard the entries of an earlier test

    def leave(self) -> None:
        self.driver.get("about:blank")

    def faults(self) -> list[str]:
        """Errors on the console, except network errors, which tests cause on purpose."""
        return [e["message"] for e in self._log() if e["level"] == "SEVERE" and e["source"] != "network"]

    def _log(self) -> list[dict[str, Any]]:
        return list(self.driver.get_log("browser"))  # type: ignore[no-untyped-call]

    def go(self, address: str = "") -> None:
        """Load the page afresh at a hash address."""
        self.leave()
        self.driver.get(f"{self.url}/{address}")

    def resize(self, width: int, height: int) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )

    def dark(self, on: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def downloads_to(self, folder: Path) -> None:
        self.driver.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder), "eventsEnabled": False}
        )

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, check: Callable[[], T], what: str) -> T:
        """Wait until `check` returns something true; elements that disappear in the meantime are looked up again."""
        ignored = (StaleElementReferenceException, NoSuchElementException)
        wait = WebDriverWait(self.driver, WAIT_SECONDS, poll_frequency=0.1, ignored_exceptions=ignored)
        try:
            return wait.until(lambda _: check())
        except TimeoutException:
            raise AssertionError(f"never: {what}. The page says:\n{self.text()}\nIts console: {self._log()}") from None

    def text(self) -> str:
        """What the page shows; spaces that do not break are spaces."""
        return str(self.run("return document.body.innerText")).replace("\u00a0", " ")

    def sees(self, text: str) -> None:
        self.until(lambda: text.lower() in self.text().lower(), f"the page shows {text!r}")

    def lacks(self, text: str) -> None:
        self.until(lambda: text.lower() not in self.text().lower(), f"the page no longer shows {text!r}")

    def find(self, selector: str) -> WebElement:
        """The element, once it is there and visible."""

        def visible() -> WebElement | None:
            element = self.driver.find_element(By.CSS_SELECTOR, selector)
            return element if element.is_displayed() else None

        found = self.until(visible, f"{selector} is visible")
        assert found is not None
        return found

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def named(self, tag: str, name: str) -> WebElement:
        """The visible element of a kind whose text is `name`."""

        def there() -> WebElement | None:
            matches = [e for e in self.all(tag) if e.text.strip() == name and e.is_displayed()]
            return matches[0] if matches else None

        found = self.until(there, f"a {tag} named {name!r}")
        assert found is not None
        return found

    def press(self, tag: str, name: str) -> None:
        def pressed() -> bool:
            self.named(tag, name).click()
            return True

        self.until(pressed, f"pressing {name!r}")

    def choose(self, label: str, option: str) -> None:
        """Choose an option, by its text, of the select that the label names."""
        script = """
        const fields = [...document.querySelectorAll('label.field')];
        const select = fields.find((l) => l.firstElementChild.textContent === arguments[0])?.querySelector('select');
        const option = select && [...select.options].find((o) => o.text === arguments[1]);
        if (!option) return false;
        select.value = option.value;
        select.dispatchEvent(new Event('change', { bubbles: true }));
        return true;"""
        self.until(lambda: self.run(script, label, option), f"choosing {option!r} of {label!r}")

    def write(self, selector: str, text: str) -> None:
        element = self.find(selector)
        element.clear()
        element.send_keys(text)

    def keys(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def replace_by_keys(self, text: str) -> None:
        """Select all of the focused field and type over it."""
        ActionChains(self.driver).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).send_keys(text).perform()

    def focused(self) -> str:
        """Tag and text of the element that has the focus."""
        script = "const e = document.activeElement; return (e.tagName + ' ' + (e.innerText || '')).trim();"
        return str(self.run(script))

    def overflow(self) -> int:
        """Pixels that the page is wider than its window."""
        return int(self.run("const d = document.documentElement; return d.scrollWidth - d.clientWidth;"))

    def has_no_barriers(self) -> None:
        """axe-core finds nothing in this view that keeps people from using it, in light and in dark."""
        self.run(AXE.read_text(encoding="utf-8"))
        for dark in (True, False):
            self.dark(dark)
            found = self.driver.execute_async_script(CHECK)
            assert not found, (self.driver.current_url, "dark" if dark else "light", found)

    def picture(self, path: str, *, whole: bool = True) -> None:
        """Save a PNG."""
        found = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})
        with open(path, "wb") as file:
            file.write(base64.b64decode(found["data"]))
