"""A pretrained seed becomes one of the run's checkpoints: read, rearranged, written, named."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coordinator.pretrained.activity import measure_activity
from coordinator.pretrained.opening import open_source
from coordinator.pretrained.source import SourceError, origin_of, write_own
from coordinator.pretrained.specs import pretrained_seed_spec
from coordinator.pretrained.widths import rearranged, unit_order
from coordinator.runfile import RunFile
from coordinator.text.prepared import Prepared
from protocol.blobs import BlobRef
from protocol.digests import canonical_bytes
from protocol.ids import WorkerId
from protocol.manifests import CheckpointManifest, ManifestFile
from protocol.specs import ExpertSpec
from shared import model as models
from shared.blobs import BlobStore
from shared.shards import Shard
from shared.tensorfiles import model_tensors, read_tensors, stream_tensors


@dataclass(frozen=True)
class Made:
    """A checkpoint that the coordinator made, its blobs in the store: what `add_made` is told."""

    spec: ExpertSpec
    manifest: CheckpointManifest
    manifest_ref: BlobRef


def make_pretrained_seed(
    run: RunFile,
    prepared: Prepared,
    store: BlobStore,
    *,
    coordinator: WorkerId,
    tick: Callable[[], None],
) -> Made:
    """The run's pretrained seed, its file and manifest in `store`.

    Equal inputs give equal bytes on one machine. `tick` is called often. Raises SourceError when
    the model is not the one that was prepared with, or holds NaN, and OSError.
    """
    spec = pretrained_seed_spec(run, prepared)
    with tempfile.TemporaryDirectory(dir=store.root) as folder:
        file = Path(folder) / "seed.safetensors"
        _write(run, spec, store.path(spec.train_shard), file, tick=tick)
        return keep_made(store, spec, file, coordinator=coordinator)


def keep_made(store: BlobStore, spec: ExpertSpec, file: Path, *, coordinator: WorkerId) -> Made:
    """Put the weights of a checkpoint that the coordinator made into `store`, with a manifest."""
    manifest = CheckpointManifest(
        kind="expert",
        spec=spec.digest,
        worker=coordinator,
        step=0,
        loss=None,
        files=(ManifestFile(name="model.safetensors", blob=store.add_file(file)),),
    )
    return Made(spec, manifest, store.add_bytes(canonical_bytes(manifest)))


def _write(
    run: RunFile, spec: ExpertSpec, shard: Path, file: Path, *, tick: Callable[[], None]
) -> None:
    assert run.seed.pretrained is not None
    path = run.origin / run.seed.pretrained.path
    source = open_source(path)
    found = origin_of(source)
    tick()
    if found != spec.origin:
        raise SourceError(
            f"{path}: its files have digest {found}, the run was prepared with {spec.origin}: "
            "put them back, or start another run"
        )
    own = file.with_name("own.safetensors")
    write_own(source, own)
    tick()
    if not spec.nested_widths:
        # An adapter that is trained on it then fits the model that it was read from, too.
        own.replace(file)
        return
    shape = spec.shape.model_copy(update={"ffn_width": source.anatomy.shape.ffn_width})
    activity = measure_activity(
        models.load(own, shape), Shard.read(shard, vocab_size=shape.vocab_size), tick=tick
    )
    tensors = read_tensors(own)
    read = rearranged(
        tensors.__getitem__,
        unit_order(activity),
        ffn_width=spec.shape.ffn_width,
        rng_seed=spec.train.rng_seed,
    )
    stream_tensors(file, model_tensors(spec.shape), read)
