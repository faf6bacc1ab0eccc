"""`hdee-coordinator blobs`: what belongs to what, what is damaged, and what may go."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coordinator.folders import RunFolders
from coordinator.ledger import queries
from coordinator.main import app
from coordinator.network.disposal import GRACE_SECONDS
from coordinator.text.prepared import Prepared, PreparedFile
from shared.blobs import BlobStore
from shared.clock import now


class Run:
    """A run on disk: two shards, the tokenizer, and a durable training checkpoint."""

    def __init__(self, run_file: Path, ledger, make, announce) -> None:
        self.run_file, self.ledger = run_file, ledger
        folders = RunFolders(run_file.parent)
        folders.create()
        self.store, self.sealed = BlobStore(folders.blobs), BlobStore(folders.sealed)
        checkpoint_id, self.manifest = announce(ledger, self.store, at=now())
        self.train = self.store.add_bytes(b"train" * 100)
        self.test = self.sealed.add_bytes(b"test" * 100)
        tokenizer = self.store.add_bytes(b"tokenizer")
        shards = tuple(
            make.shard("drama", split).model_copy(update={"blob": blob})
            for split, blob in (("train", self.train), ("test", self.test))
        )
        with ledger.begin() as connection:
            queries.mark_durable(connection, checkpoint_id, self.manifest, now())
            for shard in shards:
                queries.add_shard(connection, shard, now=now())
        prepared = Prepared(tokenizer=tokenizer, vocab_size=256, shards=shards)
        file = PreparedFile(text={}, prepared=prepared)
        folders.prepared.write_text(file.model_dump_json())

    def call(self, verb: str, *arguments: str, code: int = 0) -> str:
        where = ["--database", str(self.ledger.url)]
        done = CliRunner().invoke(app, ["blobs", verb, str(self.run_file), *where, *arguments])
        assert done.exit_code == code, done.output
        return done.stdout

    def json(self, verb: str, *, code: int = 0):
        return json.loads(self.call(verb, "--format", "json", code=code))


@pytest.fixture
def run(tmp_path, ledger, make, announce, write_run):
    return Run(write_run(), ledger, make, announce)


def damage(store: BlobStore, digest: str) -> None:
    with store.path(digest).open("r+b") as file:
        file.write(b"?")


def test_each_blob_is_listed_with_what_it_belongs_to(run):
    found = {line["digest"]: line for line in run.json("list")}
    assert found[run.train.digest]["belongs_to"] == ["train shard of drama"]
    assert found[run.test.digest]["store"] == "sealed"
    (words,) = found[run.manifest.files[1].blob.digest]["belongs_to"]
    assert words.startswith("optimizer.safetensors of durable training checkpoint seed-ffn64-")
    assert {line["state"] for line in found.values()} == {"whole"}
    spare = run.store.add_bytes(b"spare")
    text = run.call("list")
    assert "the tokenizer" in text
    assert any(
        line.startswith(spare.digest[:12]) and "nothing names it" in line
        for line in text.splitlines()
    )


def test_what_is_damaged_or_missing_is_named_with_what_it_belongs_to(run):
    damage(run.sealed, run.test.digest)
    weights = run.manifest.files[0].blob.digest
    damage(run.store, weights)
    run.store.delete(run.train.digest)
    found = run.json("verify", code=1)
    assert not found["holds"]
    states = {line["digest"]: line["state"] for line in found["lines"]}
    assert states == {
        weights: "1 of 1 pieces differ, the first is 0",
        run.test.digest: "1 of 1 pieces differ, the first is 0",
        run.train.digest: "missing",
    }
    text = run.call("verify", code=1)
    assert f"DAMAGED {weights} in blobs: 1 of 1 pieces differ" in text
    assert "model.safetensors of durable training checkpoint" in text
    assert f"MISSING {run.train.digest} in blobs: train shard of drama" in text
    assert "test shard of drama" in text
    assert run.store.has(weights)


def test_a_whole_run_verifies(run):
    assert run.json("verify") == {"holds": True, "lines": []}
    assert "none is missing" in run.call("verify")


def test_what_nothing_needs_any_more_may_be_missing(run):
    with run.ledger.begin() as connection:
        (row,) = queries.all_assignments(connection)
        queries.settle_assignment(connection, row.assignment, "cancel", reason="", now=now())
    for file in run.manifest.files:
        run.store.delete(file.blob.digest)
    assert run.json("verify")["holds"]


def test_gc_deletes_what_nothing_names_after_its_grace_and_nothing_else(run):
    new, old = run.store.add_bytes(b"new"), run.store.add_bytes(b"old")
    at = now() - GRACE_SECONDS - 60
    for mark in run.store.marks_folder.iterdir():
        os.utime(mark, (at, at))
    os.utime(run.store.marks_folder / f"{new.digest}.json")
    before = {*run.store.digests()}
    found = run.json("gc")
    assert found["deleted"] == [old.digest]
    assert found["bytes_freed"] > 0
    assert {*run.store.digests()} == before - {old.digest}
    assert {*run.sealed.digests()} == {run.test.digest}


def test_gc_mends_what_a_kill_left_in_both_stores(run):
    for store, ref in ((run.store, run.train), (run.sealed, run.test)):
        (store.marks_folder / f"{ref.digest}.json").unlink()
    assert run.json("gc")["deleted"] == []
    assert run.store.has(run.train.digest)
    assert run.sealed.has(run.test.digest)


def test_before_the_text_is_prepared_nothing_is_swept(run):
    (run.run_file.parent / "state" / "prepared.json").unlink()
    spare = run.store.add_bytes(b"spare")
    at = now() - GRACE_SECONDS - 60
    os.utime(run.store.marks_folder / f"{spare.digest}.json", (at, at))
    assert "not prepared yet" in run.call("gc")
    assert run.store.has(spare.digest)


def test_wrong_usage_ends_with_2(run):
    run.call("verify", "--format", "xml", code=2)
    run.call("shred", code=2)
