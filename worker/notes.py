"""What a worker remembers on disk of its work, and why each of its blobs is there.

Reading it takes no lock: every file is replaced as a whole. What is torn or missing counts as not
remembered.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from protocol.blobs import MAX_BLOB_BYTES
from protocol.capability import MAX_DEVICES
from protocol.ids import AssignmentId, Digest
from protocol.manifests import MAX_MANIFEST_BYTES, CheckpointManifest
from protocol.messages import Offer, Submission
from protocol.values import Amount, Value
from shared.blobs import BlobMissing, BlobStore

Purpose = Literal["made", "lease", "input"]
"""made: by this worker, and the coordinator has not said that it holds it. lease: what the lease
that is worked on starts from. input: what another lease started from, kept for the next one."""


class Delivery(Value):
    """A checkpoint that was handed in at `at` (seconds since 1970), and the blobs that it needs.

    `submission` is None for the training checkpoint of a lease that was given back.
    """

    assignment: AssignmentId
    submission: Submission | None
    blobs: Annotated[tuple[Digest, ...], Field(strict=False, max_length=16)]
    at: Amount


class CachedInput(Value):
    """A shard or a parent's weights, which came from the coordinator or through other peers.

    `public` is what may be served on to anybody. It need not be here any more.
    """

    size: Annotated[int, Field(ge=0, le=MAX_BLOB_BYTES)]
    public: bool


DELIVERIES = TypeAdapter(dict[Digest, Delivery])
INPUTS = TypeAdapter(dict[Digest, CachedInput])


def device_path(root: Path, name: str, device_number: int) -> Path:
    """Where a device keeps a file: `offer.json` the first one, `offer-1.json` the second."""
    stem, dot, suffix = name.partition(".")
    return root / (name if device_number == 0 else f"{stem}-{device_number}{dot}{suffix}")


def offer_in(root: Path, device_number: int = 0) -> Offer | None:
    """The lease that a device was working on when the agent ended, or is."""
    path = device_path(root, "offer.json", device_number)
    try:
        return Offer.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def offers_in(root: Path) -> dict[int, Offer]:
    """Those of all devices, by number."""
    found = ((number, offer_in(root, number)) for number in range(MAX_DEVICES))
    return {number: offer for number, offer in found if offer is not None}


def deliveries_in(root: Path) -> dict[str, Delivery]:
    """What was handed in and is not yet known to be durable, by manifest."""
    try:
        return DELIVERIES.validate_json((root / "deliveries.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return {}


def are_torn(root: Path) -> bool:
    """Whether there are notes of deliveries that this version cannot read."""
    try:
        DELIVERIES.validate_json((root / "deliveries.json").read_bytes())
    except FileNotFoundError:
        return False
    except ValidationError:
        return True
    return False


def inputs_in(root: Path) -> dict[str, CachedInput]:
    """What leases started from, by digest; what was used last comes last."""
    try:
        return INPUTS.validate_json((root / "inputs.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return {}


def made_here(blobs: BlobStore) -> dict[str, CheckpointManifest]:
    """Checkpoints that this worker made and whose manifests are here, by manifest.

    A manifest becomes a blob only where its checkpoint was made: nobody fetches those of others.
    """
    found: dict[str, CheckpointManifest] = {}
    for digest in blobs.digests():
        with contextlib.suppress(BlobMissing, ValidationError, OSError):
            path = blobs.path(digest)
            if path.stat().st_size <= MAX_MANIFEST_BYTES:
                found[digest] = CheckpointManifest.model_validate_json(path.read_bytes())
    return found


def blobs_of(checkpoints: Mapping[str, CheckpointManifest]) -> frozenset[str]:
    """Digests of checkpoints' manifests and files."""
    files = (one for manifest in checkpoints.values() for one in _files(manifest))
    return frozenset({*checkpoints, *files})


def purposes(root: Path, blobs: BlobStore) -> dict[str, Purpose]:
    """Why each blob is needed, by digest; what needs it most decides. They need not be here."""
    found: dict[str, Purpose] = dict.fromkeys(inputs_in(root), "input")
    offers = offers_in(root).values()
    if offers:
        found |= dict.fromkeys((one for offer in offers for one in lease_inputs(offer)), "lease")
        specs = {offer.spec.digest for offer in offers}
        made = {one: each for one, each in made_here(blobs).items() if each.spec in specs}
        found |= dict.fromkeys(blobs_of(made), "made")
    for delivery in deliveries_in(root).values():
        found |= dict.fromkeys(delivery.blobs, "made")
    return found


def lease_inputs(offer: Offer) -> frozenset[str]:
    """Digests of what training starts from: the shard, the parent's weights, a checkpoint."""
    parent = offer.parent.manifest if offer.parent else None
    manifests = [one for one in (parent, offer.resume) if one is not None]
    return frozenset({offer.shard.digest, *(one for each in manifests for one in _files(each))})


def _files(manifest: CheckpointManifest) -> Iterator[str]:
    return (file.blob.digest for file in manifest.files)
