"""What a submission is worth: reads its files, measures it on gate text, and asks for the decision.

The collector has checked the files already; nothing in the folder is trusted for that.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from coordinator.ledger.accepted import AcceptedRow
from coordinator.ledger.verifying import SubmissionRow
from coordinator.names import checkpoint_name
from coordinator.scoring.adapters import find_unmerged
from coordinator.scoring.measuring import Checkpoint, Measurer, num_labels
from coordinator.scoring.pulse import Pulse, Task
from coordinator.scoring.verification import (
    Comparison,
    Decision,
    Rejected,
    Standard,
    decide,
    decide_harmless,
    find_changed_frozen,
    find_copy,
)
from coordinator.text.prepared import Prepared
from protocol.blobs import ShardManifest
from protocol.manifests import CheckpointManifest, FileName, files_of
from protocol.specs import ExpertSpec, ModelShape
from shared.blobs import BlobStore
from shared.checkpointfiles import tensors_of
from shared.tensorfiles import (
    TensorFileError,
    check_file,
    check_finite,
    model_tensors,
    read_tensors,
)

MODEL_FILE: FileName = "model.safetensors"
ADAPTER_FILE: FileName = "adapter.safetensors"
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
            for file in row.manifest.files:
                if not self._is_sound(file.blob.digest):
                    name = checkpoint_name(row.spec)
                    return f"the file of {name}, blob {file.blob.digest}, is lost or damaged"
        return None

    def _is_sound(self, digest: str) -> bool:
        if self._store.has(digest):
            if digest in self._hashed:
                return True
            self._tick()
            if self._store.verify(digest):
                self._hashed.add(digest)
                return True
        self._hashed.discard(digest)
        return False

    def hash_again(self) -> None:
        """Hash every file anew when it is next looked at."""
        self._hashed.clear()


class Examiner:
    """Examines one submission after the other; remembers the digests of accepted tensors."""

    def __init__(
        self,
        *,
        prepared: Prepared,
        trained: Collection[str],
        store: BlobStore,
        measurer: Measurer,
        pulse: Pulse,
        harm_percent: float = 0.0,
    ) -> None:
        """`trained` are the domains that experts train on; `harm_percent` is for own data."""
        self._prepared = prepared
        self._trained = trained
        self._store = store
        self._measurer = measurer
        self._pulse = pulse
        self._harm_percent = harm_percent
        self._tensor_digests: dict[tuple[str, int], str] = {}

    def examine(
        self,
        submission: SubmissionRow,
        accepted: Mapping[str, AcceptedRow],
        *,
        standard: Standard = "better",
    ) -> Decision:
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
        if submission.owner is not None:
            assert parent is not None, "an expert on own data starts from a seed"
            return self._examine_own(submission, parent)
        gates = self._gates(spec)
        widths = widths_of(spec)
        total = sum(map(num_labels, gates)) * len(widths) * (1 if parent is None else 2)
        task = self._pulse.task(f"verifying {checkpoint_name(spec)}", total)
        comparisons = [
            self._compare(checkpoint_at(self._store, spec, manifest, width), spec, parent, task)
            for width in widths
        ]
        return decide(comparisons, rng_seed=_BOOTSTRAP_SEED, standard=standard)

    def _examine_own(self, submission: SubmissionRow, parent: AcceptedRow) -> Decision:
        """Own data: nobody else has text of its domain, so the run's domains must not suffer."""
        spec = submission.spec
        gates = [shard for shard in self._prepared.shards if shard.split == "gate"]
        task = self._pulse.task(
            f"verifying {checkpoint_name(spec)}", 2 * sum(map(num_labels, gates))
        )
        width = spec.shape.ffn_width
        candidate, beginning = (
            self._measurer.measure(
                checkpoint_at(self._store, one.spec, one.manifest, width), gates, task=task
            )
            for one in (submission, parent)
        )
        comparisons = {
            gate.domain: Comparison(
                candidate=new,
                baseline=old,
                documents=self._measurer.windows(gate, spec.shape.context_length).label_documents,
                against="its parent",
                ffn_width=width,
            )
            for gate, new, old in zip(gates, candidate, beginning, strict=True)
        }
        return decide_harmless(
            comparisons, harm_percent=self._harm_percent, rng_seed=_BOOTSTRAP_SEED
        )

    def _damage(self, submission: SubmissionRow) -> Rejected | None:
        spec, manifest = submission.spec, submission.manifest
        names = files_of("expert", spec)
        expected = ("expert", spec.digest, spec.train.num_steps, submission.worker, names)
        files = tuple(file.name for file in manifest.files)
        found = (manifest.kind, manifest.spec, manifest.step, manifest.worker, files)
        if found != expected:
            return Rejected(
                "its manifest does not answer to its spec", f"got {found}, expected {expected}"
            )
        for name in names:
            digest = manifest.blob(name).digest
            if not self._store.has(digest) or not self._store.verify(digest):
                return Rejected("its file is damaged", f"{digest} is missing or does not verify")
            path = self._store.path(digest)
            try:
                check_file(path, tensors_of(name, spec))
                check_finite(path)
            except TensorFileError as error:
                words = f"{name}: {error}"
                return Rejected("its file does not hold what its spec says", words)
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
        candidate, frozen = (
            self._tensors(one.manifest.blob(MODEL_FILE).digest, spec.shape)
            for one in (submission, parent)
        )
        if spec.lora is not None:
            adapter = self._store.path(submission.manifest.blob(ADAPTER_FILE).digest)
            return find_unmerged(candidate, frozen, read_tensors(adapter), spec.lora)
        return find_changed_frozen(candidate, frozen, spec.trains)

    def _gates(self, spec: ExpertSpec) -> Sequence[ShardManifest]:
        """A seed is held to all domains' text, the dense baseline to that of those it trains on,
        an expert to its own domain's."""
        gates = [shard for shard in self._prepared.shards if shard.split == "gate"]
        if spec.kind == "seed":
            return gates
        domains = self._trained if spec.kind == "dense" else (spec.domain,)
        return [shard for shard in gates if shard.domain in domains]

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
