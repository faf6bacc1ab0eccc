"""What one peer says of itself in the DHT, by key: a bounded number of records, oldest out first.
And what it believes of the others' records.

Every node counts the living keys of each owner and refuses those beyond a limit. So a peer that
says more than that is better off choosing itself what goes.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import ValidationError

from protocol.records import ProviderRecord
from protocol.values import Value

log = logging.getLogger(__name__)

_MAX_RECORD_MADDRS = 4

Record = TypeVar("Record", bound=Value)


class Announcements:
    """Records that are published, and published again, until they are dropped."""

    def __init__(self, *, max_keys: int) -> None:
        self._max_keys = max_keys
        self._records: dict[str, Value] = {}
        self._warned = False

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, what was put longest ago first."""
        return tuple(self._records)

    def put(self, key: str, record: Value) -> None:
        """Say `record` under `key` from now on; what was put longest ago gives way to it."""
        self._records.pop(key, None)
        while len(self._records) >= self._max_keys:
            gone = next(iter(self._records))
            del self._records[gone]
            # Once in words that everybody sees: it would be said again with every blob.
            log.log(
                logging.DEBUG if self._warned else logging.WARNING,
                "announcing %s no longer: a peer has at most %d records",
                gone,
                self._max_keys,
            )
            self._warned = True
        self._records[key] = record

    def drop(self, key: str) -> None:
        """Say nothing under `key` any more; what nodes have of it expires."""
        self._records.pop(key, None)

    def payload(self, key: str, maddrs: Sequence[str]) -> object | None:
        """What to publish under `key` now, by a peer that is dialled at `maddrs`."""
        record = self._records.get(key)
        if isinstance(record, ProviderRecord):
            record = ProviderRecord(m=tuple(maddrs[:_MAX_RECORD_MADDRS]), n=record.n)
        return None if record is None else record.model_dump(mode="json")


def believable(
    found: Mapping[object, tuple[object, float]], kind: type[Record], *, now: float
) -> dict[str, Record]:
    """Owner to record, of payloads and expiries by subkey: what is well formed and still holds."""
    records: dict[str, Record] = {}
    for owner, (payload, expires_at) in found.items():
        if isinstance(owner, str) and expires_at > now:
            with contextlib.suppress(ValidationError):
                records[owner] = kind.model_validate(payload)
    return records
