"""The rows of a dataset on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from services.contracts.errors import ConfigurationError
from services.contracts.questions.formats import NoReaderError, RawRow, same, table_row
from services.contracts.questions.source import Source


def hub_rows(source: Source) -> Iterator[RawRow]:
    """The rows of a source on the hub; with a limit they are streamed, so that no more than needed is downloaded.

    Raises:
        ConfigurationError: there is no such dataset, configuration, split or revision, or the hub is out of reach.
        NoReaderError: the library `datasets` is not installed.
    """
    name, split = source.place()
    try:
        from datasets import load_dataset  # heavy, and most runs read files
    except ImportError as error:
        raise NoReaderError("the library `datasets` is not installed here") from error
    options = {"name": source.configuration, "revision": source.revision, "streaming": source.limit is not None or None}
    given = {key: value for key, value in options.items() if value is not None}
    try:
        # with hf://, so that no local folder is read instead
        rows = load_dataset(f"hf://datasets/{name}", split=split, **given)
    except Exception as error:
        raise ConfigurationError(
            f"The dataset {source.path} cannot be loaded: {error}.",
            remedy="Check the name, configuration, split, revision and the network, or use a file.",
        ) from error
    for number, row in enumerate(rows):
        yield f"{source.path}, row {number}", partial(same, table_row(row))
