"""What a submission is worth: reads its files, measures it on gate text, and asks for the decision.

The collector has checked the files already; nothing in the folder is trusted for that.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from coordinator.ledger.results import AcceptedRow, SubmissionRow
from coordinator.names import checkpoint_name
from coordinator.scoring.measuring import Checkpoint, Measurer, num_labels
from coordinator.scoring.pulse import Pulse, Task
from coordinator.scoring.verification import (
    Comparison,
    Decision,
    Rejected,
    decide,
    find_changed_frozen,
    find_copy,
)
from coordinator.text.prepared import Prepared
from protocol.blobs import ShardManifest
from protocol.manifests import CheckpointManifest, FileName
from protocol.specs import ExpertSpec, ModelShape
from shared.blobstore import BlobStore
from shared.tensorfiles import (
    TensorFileError,
    check_file,
    check_finite,
    model_tensors,
    read_tensors,
)

MODEL_FILE: FileName = "model.safetensors"
_BOOTSTRAP_SEED = 0

Tensors = dict[str, NDArray[np.generic]]


def widths_of(spec: ExpertSpec) -> tuple[int, ...]:
    """The FFN widths that a checkpoint of `spec` is used at, ascending."""
    return spec.nested_widths or (spec.shape.ffn_width,)


def checkpoint_at(
    store: BlobStore, spec: ExpertSpec, manifest: CheckpointManifest, ffn_width: int
) -> Checkpoint:
    """The weights of a checkpoint at one width. Raises BlobMissing when the store lacks them."""
    digest = manifest.blob(MODEL_FILE).digest
    shape = spec.shape.model_copy(update={"ffn_width": ffn_width})
    return Checkpoint(digest=digest, path=store.path(digest), shape=shape)


class AcceptedFiles:
    """Looks after the files of accepted checkpoints, which every later step reads."""

    def __init__(self, store: BlobStore, tick: Callable[[], None]) -> None:
        self._store = store
        self._tick = tick
        self._hashed: set[str] = set()

    def find_lost(self, accepted: Mapping[str, AcceptedRow]) -> str | None:
        """What is wrong with the first that is missing or damaged; None if all are sound.

        Each is hashed when it is first seen; later, and until `hash_again`, it has to be there.
        """
        for row in accepted.values():
            digest = row.manifest.blob(MODEL_FILE).digest
            if self._store.has(digest):
                if digest in self._hashed:
                    continue
                self._tick()
                if self._store.verify(digest):
                    self._hashed.add(digest)
                    continue
            self._hashed.discard(digest)
            return f"the file of {checkpoint_name(row.spec)}, blob {digest}, is lost or damaged"
        return None

    def hash_again(self) -> None:
        """Hash every file anew when it is next looked at."""
        self._hashed.clear()


class Examiner:
    """Examines one submission after the other; remembers the digests of accepted tensors."""

    def __init__(
        self, *, prepared: Prepared, store: BlobStore, measurer: Measurer, pulse: Pulse
    ) -> None:
        self._prepared = prepared
        self._store = store
        self._measurer = measurer
        self._pulse = pulse
        self._tensor_digests: dict[tuple[str, int], str] = {}

    def examine(self, submission: SubmissionRow, accepted: Mapping[str, AcceptedRow]) -> Decision:
        """The decision on `submission`; `accepted` are the checkpoints accepted so far, by spec.

        Raises KeyError when the parent of an expert is not among them.
        """
        spec, manifest = submission.spec, submission.manifest
        parent = None if spec.parent is None else accepted[spec.parent]
        refusal = self._damage(submission)
        if refusal is None:
            refusal = self._copy(submission, accepted)
        if refusal is None and parent is not None:
            refusal = self._changed_frozen(submission, parent)
        if refusal is not None:
            return refusal
        gates = self._gates(spec)
        widths = widths_of(spec)
        total = sum(map(num_labels, gates)) * len(widths) * (1 if parent is None else 2)
        task = self._pulse.task(f"verifying {checkpoint_name(spec)}", total)
        comparisons = [
            self._compare(checkpoint_at(self._store, spec, manifest, width), spec, parent, task)
            for width in widths
        ]
        return decide(comparisons, rng_seed=_BOOTSTRAP_SEED)

    def _damage(self, submission: SubmissionRow) -> Rejected | None:
        spec, manifest = submission.spec, submission.manifest
        expected = ("expert", spec.digest, spec.train.num_steps, submission.worker)
        found = (manifest.kind, manifest.spec, manifest.step, manifest.worker)
        if found != expected:
            return Rejected(
                "its manifest does not answer to its spec", f"got {found}, expected {expected}"
            )
        digest = manifest.blob(MODEL_FILE).digest
        if not self._store.has(digest) or not self._store.verify(digest):
            return Rejected("its file is damaged", f"{digest} is missing or does not verify")
        path = self._store.path(digest)
        try:
            check_file(path, model_tensors(spec.shape))
            check_finite(path)
        except TensorFileError as error:
            return Rejected("its file does not hold what its spec says", str(error))
        return None

    def _copy(
        self, submission: SubmissionRow, accepted: Mapping[str, AcceptedRow]
    ) -> Rejected | None:
        spec = submission.spec
        file = submission.manifest.blob(MODEL_FILE).digest
        known: dict[str, str] = {}
        for digest, row in accepted.items():
            self._pulse.tick()
            if digest == spec.digest or row.spec.shape.ffn_width < spec.shape.ffn_width:
                continue
            other = row.manifest.blob(MODEL_FILE).digest
            known[other] = f"the file of {checkpoint_name(row.spec)}"
            known[self._tensor_digest(other, spec.shape)] = (
                f"the tensors of {checkpoint_name(row.spec)}"
            )
        return find_copy((file, self._tensor_digest(file, spec.shape)), known)

    def _changed_frozen(self, submission: SubmissionRow, parent: AcceptedRow) -> Rejected | None:
        spec = submission.spec
        if spec.trains == "all":
            return None
        return find_changed_frozen(
            self._tensors(submission.manifest.blob(MODEL_FILE).digest, spec.shape),
            self._tensors(parent.manifest.blob(MODEL_FILE).digest, spec.shape),
            spec.trains,
        )

    def _gates(self, spec: ExpertSpec) -> Sequence[ShardManifest]:
        """An expert is held to its own domain's text, a seed to that of all domains it serves."""
        return [
            shard
            for shard in self._prepared.shards
            if shard.split == "gate" and (spec.kind == "seed" or shard.domain == spec.domain)
        ]

    def _compare(
        self, candidate: Checkpoint, spec: ExpertSpec, parent: AcceptedRow | None, task: Task
    ) -> Comparison:
        gates = self._gates(spec)
        measured = self._measurer.measure(candidate, gates, task=task)
        if parent is None:
            train = self._train_shard(spec)
            baseline = [self._measurer.unigram(train, gate) for gate in gates]
        else:
            beginning = checkpoint_at(
                self._store, parent.spec, parent.manifest, candidate.shape.ffn_width
            )
            baseline = self._measurer.measure(beginning, gates, task=task)
        documents, offset = [], 0
        for gate in gates:
            windows = self._measurer.windows(gate, candidate.shape.context_length)
            documents.append(windows.label_documents + offset)
            offset += gate.num_documents
        return Comparison(
            candidate=np.concatenate(measured),
            baseline=np.concatenate(baseline),
            documents=np.concatenate(documents),
            against="a unigram model" if parent is None else "its parent",
            ffn_width=candidate.shape.ffn_width,
        )

    def _train_shard(self, spec: ExpertSpec) -> ShardManifest:
        for shard in self._prepared.shards:
            if shard.blob.digest == spec.train_shard:
                return shard
        raise KeyError(f"train shard {spec.train_shard} is none of this run's")

    def _tensors(self, digest: str, shape: ModelShape) -> Tensors:
        """The tensors of a file, narrowed to `shape`: views over the file."""
        tensors = read_tensors(self._store.path(digest))
        return {
            name: tensors[name][tuple(slice(0, extent) for extent in extents)]
            for name, (_, extents) in model_tensors(shape).items()
        }

    def _tensor_digest(self, digest: str, shape: ModelShape) -> str:
        """SHA-256 of the narrowed tensors' bytes, whatever the file's header looks like."""
        key = (digest, shape.ffn_width)
        if key not in self._tensor_digests:
            sha256 = hashlib.sha256()
            for tensor in self._tensors(digest, shape).values():
                sha256.update(tensor.tobytes())
            self._tensor_digests[key] = sha256.hexdigest()
        return self._tensor_digests[key]
