"""Builds the documentation site in build/site, offline: `make docs`. A dead link or anchor fails the build.

Pages are the files under docs/ and those at the root of the repository, which stay there for code hosts to display.
Both are copied into one folder, with the links between them rewritten; mkdocs.yml says how they are shown.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "build" / "site-source"
"""What mkdocs.yml names as `docs_dir`."""
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security-policy.md",
}
LINK = re.compile(r"\]\((?P<path>[\w./-]+\.(?:md|png))(?P<anchor>#[\w-]+)?\)")


def stage() -> None:
    """Copy all pages and pictures to SOURCE."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    docs = ROOT / "docs"
    for origin in [*docs.rglob("*.md"), *docs.rglob("*.png"), *(ROOT / name for name in ROOT_PAGES)]:
        target = SOURCE / page_of(origin)
        target.parent.mkdir(parents=True, exist_ok=True)
        if origin.suffix == ".md":
            target.write_text(with_site_links(origin), encoding="utf-8")
        else:
            shutil.copyfile(origin, target)


def page_of(origin: Path) -> Path:
    """The site's path for a file of the repository, relative to the site's root."""
    path = origin.relative_to(ROOT)
    return Path(ROOT_PAGES[path.name]) if path.name in ROOT_PAGES and len(path.parts) == 1 else path.relative_to("docs")


def with_site_links(origin: Path) -> str:
    """A page's text with links to other files of the repository as links to their pages.

    Raises:
        SystemExit: a link leads to a file that does not exist.
    """

    def rewrite(match: re.Match[str]) -> str:
        linked = (origin.parent / match["path"]).resolve()
        if not linked.is_file():
            sys.exit(f"{origin.relative_to(ROOT)}: the link to {match['path']} is dead. Correct it.")
        page = os.path.relpath(page_of(linked), page_of(origin).parent)
        return f"]({page}{match['anchor'] or ''})"

    return LINK.sub(rewrite, origin.read_text(encoding="utf-8"))


if __name__ == "__main__":
    stage()
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict", "--clean"]
    sys.exit(subprocess.run(command, cwd=ROOT).returncode)
