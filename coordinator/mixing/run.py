"""A finished run as mixing sees it: its schemes' experts, its shards, and what is cached of both.

All of it is read from results.json, prepared.json and the blobs; the ledger is not asked, so that a
run whose folder was copied can be mixed, and one that is still served, too.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from coordinator.folders import RunFolders
from coordinator.report.reading import ReportError, read_results
from coordinator.runfile import RunFile, load_run_file
from coordinator.scoring.measuring import Checkpoint
from coordinator.scoring.outcome import CheckpointFacts, Results
from coordinator.text.prepared import Prepared, PrepareError, read_prepared
from protocol.blobs import ShardManifest, Split
from shared.blobs import BlobMissing, BlobStore
from shared.mixing.ingredients import SEED, MixingError
from shared.shards import Shard
from shared.text.vocabulary import Vocabulary, open_vocabulary


@dataclass(frozen=True)
class Member:
    """An expert of a scheme's final ensemble, or the seed.

    `name` is what it is called in a mixture, `facts.name` in the run. `domains` are those that it
    was trained on, its own last: several along a lineage.
    """

    name: str
    domains: tuple[str, ...]
    facts: CheckpointFacts
    checkpoint: Checkpoint

    @property
    def domain(self) -> str:
        """The domain that it was trained on last."""
        return self.domains[-1]


class FinishedRun:
    """Everything of a run that has its results. Nothing of the run is changed."""

    def __init__(
        self, run: RunFile, folders: RunFolders, prepared: Prepared, results: Results
    ) -> None:
        self.run = run
        self.folders = folders
        self.prepared = prepared
        self.results = results
        self._facts = {one.name: one for one in results.checkpoints}
        self._store = BlobStore(folders.blobs)

    @classmethod
    def open(cls, run_file: Path) -> "FinishedRun":
        """The run of a run file.

        Raises RunFileError, PrepareError for a damaged prepared.json, and MixingError where the run
        is not finished.
        """
        run = load_run_file(run_file)
        folders = RunFolders(run.folder)
        try:
            results = read_results(folders.state / "results.json")
        except ReportError as error:
            raise MixingError(
                f"{error}; mixing needs a finished run: hdee-coordinator train-local {run_file}, "
                "or serve it until its status says finished"
            ) from error
        prepared = read_prepared(folders.prepared)
        if prepared is None:
            raise PrepareError(f"{folders.prepared} is missing: a finished run has it")
        return cls(run, folders, prepared.prepared, results)

    @property
    def context_length(self) -> int:
        """Of its models, in tokens."""
        return self.run.shape.context_length

    @property
    def trained(self) -> tuple[str, ...]:
        """The domains that experts were trained on, in order."""
        return self._domains("trained")

    @property
    def held_out(self) -> tuple[str, ...]:
        """The domains that nobody trained on."""
        return self._domains("held-out")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Its tokenizer."""
        return open_vocabulary(self.folders.tokenizer.read_bytes())

    @cached_property
    def seed(self) -> Member:
        """The seed model at width M."""
        medium = self.run.widths.M
        nested = self.run.seed.kind != "per-size"
        facts = self._known(self.results.seed)
        width = medium if nested else facts.shape.ffn_width
        return self._member(facts, name=SEED, domains=(facts.domain,), width=width)

    @cached_property
    def dense(self) -> Member | None:
        """The dense baseline: the seed given the same extra steps; None if the run has none."""
        if self.results.dense is None:
            return None
        facts = self._known(self.results.dense)
        return self._member(facts, name="dense", domains=(facts.domain,))

    def members(self, scheme: str) -> tuple[Member, ...]:
        """The experts of a scheme's final ensemble, in order of their names.

        Each is called by its domain where no other has it. Raises MixingError for a scheme that the
        run does not have.
        """
        if scheme not in self.results.members:
            raise MixingError(
                f"scheme {scheme!r}: the run has none of this name, expected one of "
                f"{list(self.results.members)}"
            )
        facts = [self._known(name) for name in self.results.members[scheme]]
        often = Counter(one.domain for one in facts)
        taken = {SEED, "dense"}
        return tuple(
            self._member(
                one,
                name=one.domain if often[one.domain] == 1 and one.domain not in taken else one.name,
                domains=self._lineage(one),
            )
            for one in facts
        )

    def expert(self, name: str) -> Member:
        """Any checkpoint that results name, and the seed at any of its widths.

        Raises MixingError, which lists them.
        """
        widths = self._seed_widths()
        if name in widths:
            facts = self._known(self.results.seed)
            return self._member(facts, name=name, domains=(facts.domain,), width=widths[name])
        if name not in self._facts:
            raise MixingError(
                f"{name!r}: the run has no checkpoint of this name, expected one of "
                f"{sorted(self._facts.keys() | widths.keys())}"
            )
        facts = self._facts[name]
        return self._member(facts, name=name, domains=self._lineage(facts))

    def shard(self, domain: str, split: Split) -> tuple[ShardManifest, Shard]:
        """One split of a domain, memory-mapped. Raises MixingError where its file is gone."""
        manifest = self.prepared.shard(domain, split)
        sealed = split in ("gate", "test")
        store = BlobStore(self.folders.sealed) if sealed else self._store
        try:
            path = store.path(manifest.blob.digest)
        except BlobMissing as error:
            raise MixingError(
                f"the {split} shard of {domain}, blob {manifest.blob.digest}, is not in "
                f"{store.root}: put it back from a copy of the run's folder"
            ) from error
        return manifest, Shard.read(path, vocab_size=manifest.vocab_size)

    def _seed_widths(self) -> dict[str, int]:
        """What the seed is called at each width that it has."""
        if self.run.seed.kind == "per-size":
            return {}
        medium = self.run.widths.M
        widths = self.run.widths.nested() or (medium,)
        name = self.results.seed
        return {name.replace(f"-ffn{medium}-", f"-ffn{width}-"): width for width in widths}

    def _domains(self, role: str) -> tuple[str, ...]:
        return tuple(one.domain for one in self.results.domains if one.role == role)

    def _known(self, name: str) -> CheckpointFacts:
        if name not in self._facts:
            raise MixingError(
                f"{name!r}: the run has no checkpoint of this name, expected one of "
                f"{sorted(self._facts)}"
            )
        return self._facts[name]

    def _lineage(self, facts: CheckpointFacts) -> tuple[str, ...]:
        """The domains that experts were trained on up to this one, the first one first."""
        found = [facts.domain]
        while facts.parent is not None:
            facts = self._known(facts.parent)
            if facts.kind != "expert":
                break
            found.append(facts.domain)
        return tuple(reversed(found))

    def _member(
        self,
        facts: CheckpointFacts,
        *,
        name: str,
        domains: tuple[str, ...],
        width: int | None = None,
    ) -> Member:
        try:
            path = self._store.path(facts.file)
        except BlobMissing as error:
            raise MixingError(
                f"the file of {facts.name}, blob {facts.file}, is not in {self.folders.blobs}: put "
                "it back from a copy of the run's folder"
            ) from error
        shape = facts.shape
        if width is not None:
            shape = shape.model_copy(update={"ffn_width": width})
        checkpoint = Checkpoint(digest=facts.file, path=path, shape=shape)
        return Member(name=name, domains=domains, facts=facts, checkpoint=checkpoint)
