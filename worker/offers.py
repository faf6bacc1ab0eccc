"""Whether this machine should follow an offer: a coordinator is a stranger, too. Pure."""

from protocol.blobs import BlobRef
from protocol.capability import Capability
from protocol.manifests import MAX_STATE_BYTES, files_of
from protocol.messages import Offer
from protocol.previews import PreviewedWork
from shared import sizing
from shared.checkpointfiles import tensors_of
from shared.tensorfiles import max_bytes, model_tensors
from shared.words import amount


def problem_of(offer: Offer | PreviewedWork, capability: Capability) -> str | None:
    """Why this worker will not take `offer`, in words; None if it will.

    What is downloaded must be no larger than the spec explains, and must fit on the disk together
    with what training writes.
    """
    problem = _misfit(offer)
    if problem is not None:
        return problem
    for name, ref, limit in _downloads(offer):
        if limit is not None and ref.size > limit:
            return f"{name}: {ref.size} bytes, expected at most {limit} for its shape"
    needed = sum(ref.size for _, ref, _ in _downloads(offer)) + sizing.disk_bytes(offer.spec)
    if needed > capability.free_disk_bytes:
        return f"needs {amount(needed)} of disk, {amount(capability.free_disk_bytes)} are free"
    return None


def _misfit(offer: Offer | PreviewedWork) -> str | None:
    """What the offered checkpoints cannot be to the offered spec."""
    spec, resume, parent = offer.spec, offer.resume, offer.parent
    if resume is not None and resume.spec != spec.digest:
        return f"resume: a checkpoint of spec {resume.spec}, expected {spec.digest}"
    if resume is not None:
        names, expected = tuple(file.name for file in resume.files), files_of("training", spec)
        if names != expected:
            return f"resume: files {names}, expected {expected}"
    if parent is None:
        return None
    width, needed = parent.shape.ffn_width, spec.shape.ffn_width
    if spec.lora is not None and width != needed:
        return f"parent: FFN {width}, expected {needed}, as an adapter belongs to the whole of it"
    return None if width >= needed else f"parent: FFN {width}, expected at least {needed}"


def _downloads(offer: Offer | PreviewedWork) -> list[tuple[str, BlobRef, int | None]]:
    found: list[tuple[str, BlobRef, int | None]] = [("shard", offer.shard, None)]
    if offer.parent is not None:
        weights = offer.parent.manifest.blob("model.safetensors")
        limit = max_bytes(model_tensors(offer.parent.shape))
        found.append(("parent model.safetensors", weights, limit))
    for file in () if offer.resume is None else offer.resume.files:
        limit = MAX_STATE_BYTES
        if file.name != "state.json":
            limit = max_bytes(tensors_of(file.name, offer.spec))
        found.append((f"resume {file.name}", file.blob, limit))
    return found
