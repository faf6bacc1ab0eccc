"""How many owners' records stand under one key of the DHT, in a node's storage and in an answer.

hivemind bounds neither. A blob that a thousand peers have would have a thousand records, and an
answer with all of them is larger than a node may believe: nobody would find any. So every node
keeps a few of them, a new one in place of any other. A crowd that publishes again and again is in
turn found as a whole, which spreads its load; and no owner that keeps publishing is shut out for
good, however many others do.
"""

import random
from typing import Any

from hivemind.dht.storage import DictionaryDHTValue
from hivemind.utils import MSGPackSerializer

MAX_OWNERS = 64
"""Even if each of these records has MAX_RECORD_BYTES, an answer with all of them is believed."""


def bound_crowds() -> None:
    """Let no dictionary of hivemind's hold more than MAX_OWNERS records. Call it once."""
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


def _unpack(cls: Any, raw: bytes) -> Any:
    """The records that a peer sent, as many as are kept; of too many, any.

    What it says of their number and life is not read: anything but a number there would end the
    search in an error that reaches nobody, and who asked would wait in vain.
    """
    _, _, records = MSGPackSerializer.loads(raw)
    found = cls()
    with found.freeze():
        for owner, record, expires_at in random.sample(records, min(len(records), MAX_OWNERS)):
            found.store(owner, record, expires_at)
    return found
