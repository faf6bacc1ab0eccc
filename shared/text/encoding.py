"""Documents to what a shard file holds of them: token ids, each behind BOS, and lengths."""

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from shared.text.documents import Document
from shared.text.vocabulary import Vocabulary

_BATCH = 256

Encoded = list[tuple[npt.NDArray[np.uint32], int]]
"""For each document its ids, uint32 [tokens], and its length in UTF-8 bytes."""


def encode_documents(
    vocabulary: Vocabulary, documents: Sequence[Document], *, told: Callable[[float], None]
) -> Encoded:
    """What `shared.shards.write_shard` takes. `told` hears the share that is done, up to 1."""
    encoded: Encoded = []
    for start in range(0, len(documents), _BATCH):
        batch = documents[start : start + _BATCH]
        ids = vocabulary.encode([document.text for document in batch])
        encoded += [
            (np.fromiter(chain((vocabulary.bos_id,), row), dtype=np.uint32), document.num_bytes)
            for row, document in zip(ids, batch, strict=True)
        ]
        told((start + len(batch)) / len(documents))
    return encoded
