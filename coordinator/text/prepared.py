"""What prepare leaves behind: the tokenizer and the shards, named by digest in prepared.json."""

from pathlib import Path

from pydantic import ValidationError

from protocol.blobs import BlobRef, ShardManifest, Split
from protocol.ids import Digest
from protocol.values import Items, Positive, Value
from shared.text.errors import PrepareError

__all__ = ["PrepareError", "Prepared", "PreparedFile", "read_prepared"]


class Prepared(Value):
    """The run's tokenizer, and a manifest for each shard of each domain and of the general text.

    The tokenizer and the train and dev shards are blobs of `folders.blobs`, gate and test shards of
    `folders.sealed`. The general domain has train and dev only. `origin` is the digest of a
    pretrained seed's files.
    """

    tokenizer: BlobRef
    vocab_size: Positive
    origin: Digest | None = None
    shards: Items[ShardManifest]

    def shard(self, domain: str, split: Split) -> ShardManifest:
        """The manifest of one split of `domain`; KeyError if there is none."""
        for shard in self.shards:
            if (shard.domain, shard.split) == (domain, split):
                return shard
        raise KeyError(f"{domain} has no {split} shard")


class PreparedFile(Value):
    """The contents of prepared.json: `text` holds the settings that the shards were made with."""

    text: dict[str, object]
    prepared: Prepared


def read_prepared(path: Path) -> PreparedFile | None:
    """The file at `path`, or None where nothing was prepared yet.

    Raises PrepareError when the file is damaged.
    """
    try:
        return PreparedFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise PrepareError(
            f"{path}: damaged ({error.error_count()} errors); delete it to prepare again"
        ) from error
