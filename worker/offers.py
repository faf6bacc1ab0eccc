"""Whether this machine should follow an offer: a coordinator is a stranger, too. Pure."""

from protocol.blobs import BlobRef
from protocol.capability import Capability
from protocol.manifests import MAX_STATE_BYTES, CheckpointManifest
from protocol.messages import Offer
from protocol.specs import ModelShape
from shared import sizing
from shared.tensorfiles import max_bytes, model_tensors, optimizer_tensors


def problem_of(offer: Offer, capability: Capability) -> str | None:
    """Why this worker will not take `offer`, in words; None if it will.

    What is downloaded must be no larger than the spec explains, and must fit on the disk together
    with what training writes.
    """
    shape = offer.spec.shape
    for name, ref, limit in _downloads(offer):
        if limit is not None and ref.size > limit:
            return f"{name}: {ref.size} bytes, expected at most {limit} for its shape"
    needed = sum(ref.size for _, ref, _ in _downloads(offer)) + sizing.disk_bytes(offer.spec)
    if needed > capability.free_disk_bytes:
        return f"needs {needed} bytes of disk, {capability.free_disk_bytes} are free"
    if offer.resume is not None and offer.resume.spec != offer.spec.digest:
        return f"resume: a checkpoint of spec {offer.resume.spec}, expected {offer.spec.digest}"
    if offer.parent is not None and offer.parent.shape.ffn_width < shape.ffn_width:
        return f"parent: FFN {offer.parent.shape.ffn_width}, expected at least {shape.ffn_width}"
    return None


def _downloads(offer: Offer) -> list[tuple[str, BlobRef, int | None]]:
    found: list[tuple[str, BlobRef, int | None]] = [("shard", offer.shard, None)]
    if offer.parent is not None:
        found += _files("parent", offer.parent.manifest, offer.parent.shape)
    if offer.resume is not None:
        found += _files("resume", offer.resume, offer.spec.shape)
    return found


def _files(
    what: str, manifest: CheckpointManifest, shape: ModelShape
) -> list[tuple[str, BlobRef, int | None]]:
    limits = {
        "model.safetensors": max_bytes(model_tensors(shape)),
        "optimizer.safetensors": max_bytes(optimizer_tensors(shape)),
        "state.json": MAX_STATE_BYTES,
    }
    return [(f"{what} {file.name}", file.blob, limits[file.name]) for file in manifest.files]
