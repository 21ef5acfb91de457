"""Models and data files in the folders that runs may read, for the page to choose from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from services.runtime.settings import Settings

MOST_DEPTH: Final = 5
MOST_FOLDERS: Final = 5000
"""Folders to look into; a root may be a file system with millions of files."""
MOST_FOUND: Final = 300
"""Models, and data files, to name."""
DATA_ENDINGS: Final = (".jsonl", ".csv", ".parquet", ".jsonl.gz", ".csv.gz", ".parquet.gz")
"""Not .json, which is mostly something else; runs read those, too."""
SKIPPED: Final = {"node_modules", "__pycache__", "site-packages"}


def find_inputs(settings: Settings) -> tuple[list[str], list[str], bool]:
    """Model folders and data files, as run files would name them, and whether these are all.

    Follows no links. Leaves out hidden folders and the deployment's own one, which holds runs.
    """
    models: list[str] = []
    data: list[str] = []
    own = settings.home.resolve()
    for number, (folder, names) in enumerate(_folders(settings.root_folders, own)):
        if number >= MOST_FOLDERS or max(len(models), len(data)) >= MOST_FOUND:
            return models[:MOST_FOUND], data[:MOST_FOUND], False
        if "config.json" in names and ("tokenizer_config.json" in names or "tokenizer.json" in names):
            models.append(_named(folder))
        else:
            data += [_named(folder / name) for name in sorted(names) if name.lower().endswith(DATA_ENDINGS)]
    return sorted(models), sorted(data), True


def _folders(roots: list[Path], own: Path) -> Iterator[tuple[Path, set[str]]]:
    """Folders below `roots` with the names of their files, those nearest to a root first."""
    todo = [(root, 0) for root in dict.fromkeys(roots)]
    seen = set()
    for folder, depth in todo:  # grows while it is read
        if folder in seen or folder == own:
            continue
        seen.add(folder)
        names = set()
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda one: one.name):
                    if entry.is_dir(follow_symlinks=False):
                        if depth < MOST_DEPTH and not entry.name.startswith(".") and entry.name not in SKIPPED:
                            todo.append((folder / entry.name, depth + 1))
                    elif entry.is_file():
                        names.add(entry.name)
        except OSError:
            continue  # not readable by the services, so no run could use it
        yield folder, names


def _named(path: Path) -> str:
    """Relative to the services' working folder if it is in it, as in the shipped run files."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
