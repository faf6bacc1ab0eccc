"""Rows of a Hugging Face dataset as files. Needs the optional extra `hub`; runs no code of its."""

import importlib
from collections.abc import Iterator
from typing import Any

from coordinator.text.prepared import PrepareError
from coordinator.text_sections import HubSource


class HubError(PrepareError):
    """A dataset cannot be read; the message names it and what to do."""


def read_rows(source: HubSource) -> Iterator[tuple[str, bytes]]:
    """(name, UTF-8 bytes) of each row's text, in the order of the dataset at its revision.

    Streams: nothing is kept on disk but what the library caches itself. Raises HubError without
    the extra, for a dataset or field that is not there, and for a row without text.
    """
    rows = _open(source)
    iterator = iter(rows)
    number = 0
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # the library raises what its readers raise
            raise HubError(f"{_name(source)}: row {number}: {error}") from error
        text = row.get(source.field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            known = ", ".join(sorted(row)) if isinstance(row, dict) else "none"
            raise HubError(
                f"{_name(source)}: row {number} has no text under {source.field!r}; its fields: "
                f"{known}"
            )
        yield f"{source.dataset}#{number}", text.encode("utf-8")
        number += 1


def _open(source: HubSource) -> Any:
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise HubError(
            f"{_name(source)}: the library `datasets` is not installed; "
            "`pip install 'hdee[hub]'` brings it"
        ) from error
    try:
        return library.load_dataset(
            source.dataset,
            source.config,
            split=source.split,
            revision=source.revision,
            streaming=True,
        )
    except Exception as error:  # the library raises what its readers raise
        raise HubError(f"{_name(source)}: cannot be opened: {error}") from error


def _name(source: HubSource) -> str:
    return f"dataset {source.dataset} at {source.revision[:12]}"
