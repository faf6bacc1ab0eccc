"""What peers publish in the DHT: small signed records under an owner's subkey.

The key says what a record is about, the subkey is the owner's peer id, and the stored value is
msgpack `[payload, signature, certificate]`. Payloads are msgpack maps with one-letter keys.
"""

from typing import Annotated

from pydantic import Field

from protocol.ids import Digest, Maddr
from protocol.values import Count, Positive, Value

TTL_SECONDS = 300
"""Life of a record; its owner publishes it again after a third of it."""

MAX_TTL_SECONDS = 2 * TTL_SECONDS
"""No record that lives longer is stored or believed."""

MAX_KEYS_PER_OWNER = 256
MAX_KEYS_OF_COORDINATOR = 4096
"""Keys under which one owner has living records; further ones are refused."""

MAX_RECORD_BYTES = 4096

BEACON_SECONDS = 30
"""The coordinator publishes its beacon so often."""

BEACON_TTL_SECONDS = 120
"""Life of a beacon: a part of the DHT that lost the coordinator forgets it after this."""


def provider_key(digest: str) -> str:
    """DHT key under which the providers of a blob are found."""
    return f"v1/prov/{digest}"


def head_key(assignment: str) -> str:
    """DHT key under which the newest checkpoint of an assignment is found."""
    return f"v1/head/{assignment}"


def beacon_key(run: str) -> str:
    """DHT key under which the coordinator's sign of life is found, and nobody else's."""
    return f"v1/beacon/{run}"


class ProviderRecord(Value):
    """The owner has the blob: `m` its addresses, `n` the blob's size in bytes."""

    m: Annotated[tuple[Maddr, ...], Field(strict=False, max_length=4)]
    n: Count


class HeadRecord(Value):
    """The owner's newest checkpoint: step `s`, manifest digest `h` and size `n`, fencing `f`."""

    s: Count
    h: Digest
    n: Count
    f: Positive


class BeaconRecord(Value):
    """The coordinator publishes in the same DHT as the reader. `t`: when, in seconds since 1970."""

    t: Count
