"""What is published of a run: files by their name in the repository, on disk or in memory."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

from services.contracts.errors import ConfigurationError

Contents = dict[str, Path | bytes]
"""A path, or the content itself, by the name in the repository."""
ADAPTER_CONFIG: Final = "adapter_config.json"
TERMS: Final = ("LICENSE", "LICENCE", "NOTICE", "COPYING")


def files_of(folder: Path) -> Contents:
    """The files of a folder."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def holds_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).exists()


def adapter_for(folder: Path, base_model: str) -> Contents:
    """An adapter whose base model has the name that others know it by."""
    values = json.loads((folder / ADAPTER_CONFIG).read_bytes()) | {"base_model_name_or_path": base_model}
    return files_of(folder) | {ADAPTER_CONFIG: json.dumps(values, indent=2, sort_keys=True).encode() + b"\n"}


def merged(adapter: Path, model: str, dtype: str, out: Path) -> Contents:
    """The whole model with an adapter merged into it, as the rollout servers merge it.

    Raises:
        ConfigurationError: torch is not installed.
        CorruptWeightsError: the adapter does not fit the base model, which must be on this machine.
    """
    try:
        from services.rollout.weights.lora import write_merged
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"--merged needs a package that is not installed ({error.name}).",
            remedy="Install it with pip install 'turnout[models]', or publish the adapter.",
            field="--merged",
        ) from error
    base = write_merged(adapter, model, dtype, out)
    rest = {name: path for name, path in files_of(adapter).items() if not name.startswith("adapter_")}
    settings = {name: base / name for name in ("config.json", "generation_config.json") if (base / name).exists()}
    return settings | rest | files_of(out)


def terms_of(base: Path) -> Contents:
    """Licence and notices of a base model."""
    found = [path for path in base.iterdir() if path.is_file() and path.name.upper().startswith(TERMS)]
    return {path.name: path for path in sorted(found)}


def license_of(card: Path) -> str:
    """The licence that a model card's metadata names; empty if there is none."""
    try:
        text = card.read_text(encoding="utf-8")
        values: Any = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, UnicodeDecodeError, IndexError, yaml.YAMLError):
        return ""
    name = values.get("license") if isinstance(values, dict) else None
    return name if isinstance(name, str) else ""


def write_folder(contents: Contents, folder: Path) -> None:
    """Write the files to a folder that does not exist or is empty; all of them, or none.

    Raises:
        ConfigurationError: it has other content or cannot be written.
    """
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigurationError(
                f"The folder {folder} is not empty.", remedy="Choose another with --to-folder.", field="--to-folder"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, content in contents.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    path.write_bytes(content)
                else:
                    shutil.copyfile(content, path)
            temporary.chmod(0o755)
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise ConfigurationError(
            f"The folder {folder} cannot be written: {error.strerror}.",
            remedy="Choose another with --to-folder.",
            field="--to-folder",
        ) from error
