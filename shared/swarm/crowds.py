"""How many owners' records stand under one key of the DHT, in a node's storage and in an answer.

hivemind bounds neither. A blob that a thousand peers have would have a thousand records, and an
answer with all of them is larger than a node may believe: nobody would find any. So every node
keeps a few of them, a new one in place of any other. A crowd that publishes again and again is in
turn found as a whole, which spreads its load; and no owner that keeps publishing is shut out for
good, however many others do.
"""

import heapq
import random
from typing import Any

from hivemind.dht.storage import DictionaryDHTValue
from hivemind.utils import MSGPackSerializer
from hivemind.utils.timed_storage import TimedStorage

MAX_OWNERS = 64
"""Even if each of these records has MAX_RECORD_BYTES, an answer with all of them is believed."""

MAX_LEFTOVERS = 128
"""Times of replaced records that a storage may keep, beyond as many as it has records."""


def bound_crowds() -> None:
    """Let no dictionary of hivemind's hold more than MAX_OWNERS records. Call it once."""
    TimedStorage.store = _swept(TimedStorage.store)
    DictionaryDHTValue.store = _bounded(DictionaryDHTValue.store)
    DictionaryDHTValue.unpackb = classmethod(_unpack)


def _bounded(store: Any) -> Any:
    def store_one(self: Any, owner: object, record: bytes, expires_at: float) -> bool:
        held = self.data.get(owner)
        # hivemind would forget the newer record when the older one expires.
        if held is not None and held.expiration_time >= expires_at:
            return False
        stored = bool(store(self, owner, record, expires_at))
        if len(self) > MAX_OWNERS:
            del self[random.choice([other for other in self.data if other != owner])]
        return stored

    return store_one


def _swept(store: Any) -> Any:
    # The names are hivemind's, which calls it by them, too.
    def store_one(self: Any, key: object, value: object, expiration_time: float) -> bool:
        stored = bool(store(self, key, value, expiration_time))
        # hivemind keeps the time of what was replaced until then: a record that is sent again and
        # again, or a crowd that takes turns, would fill the memory.
        if len(self.expiration_heap) > 2 * len(self.data) + MAX_LEFTOVERS:
            self.expiration_heap = list(self.key_to_heap.values())
            heapq.heapify(self.expiration_heap)
        return stored

    return store_one


def _unpack(cls: Any, raw: bytes) -> Any:
    """The records that a peer sent, as many as are kept; of too many, any, but always the same.

    What was decoded when it was validated is so again: a payload of which some parts cannot be
    decoded would else pass, and hang who reads it.

    What it says of their number and life is not read: anything but a number there would end the
    search in an error that reaches nobody, and who asked would wait in vain.
    """
    _, _, records = MSGPackSerializer.loads(raw)
    found = cls()
    if len(records) > MAX_OWNERS:
        records = random.Random(raw).sample(records, MAX_OWNERS)
    with found.freeze():
        for owner, record, expires_at in records:
            found.store(owner, record, expires_at)
    return found
