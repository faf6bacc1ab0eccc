"""What a piece of work costs this machine, offered or only shown: bytes and time. Pure."""

from collections.abc import Collection

from protocol.capability import Capability
from protocol.messages import Offer
from protocol.previews import PreviewedWork
from shared.sizing import step_flops


def download_bytes(work: Offer | PreviewedWork, *, own_shards: Collection[str] = ()) -> int:
    """Bytes to fetch before training starts, as long as only own text is here.

    `own_shards` are the digests of own text, which is not fetched.
    """
    size = 0 if work.shard.digest in own_shards else work.shard.size
    if work.parent is not None:
        size += work.parent.manifest.blob("model.safetensors").size
    if work.resume is not None:
        size += sum(file.blob.size for file in work.resume.files)
    return size


def train_seconds(work: Offer | PreviewedWork, capability: Capability) -> float:
    """How long the rest of the training takes at the measured speed."""
    left = work.spec.train.num_steps - (0 if work.resume is None else work.resume.step)
    return left * step_flops(work.spec) / capability.flops_per_second
