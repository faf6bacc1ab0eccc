"""`hdee-worker blobs`: what a volunteer sees, what it deletes, and what it never does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protocol.digests import PIECE_BYTES
from shared.blobs import BlobStore
from shared.blobs.upkeep import IDLE_SECONDS
from shared.clock import now
from worker.blob_verbs import app, find_root
from worker.cache import Cache
from worker.folder import WorkerFolder
from worker.notes import Delivery
from worker.settings import BadSetting

OWED = b"an expert" * 100


@pytest.fixture
def folder(tmp_path: Path):
    """Three blobs: a shard that is kept, an expert that is owed, and what nothing needs."""
    found = WorkerFolder(tmp_path / "worker")
    shard = found.blobs.add_bytes(b"shard" * 1000)
    owed = found.blobs.add_bytes(OWED)
    found.blobs.add_bytes(b"left")
    Cache(found, cap_bytes=None).add(shard, public=True)
    one = Delivery(assignment="a" + "0" * 16, submission=None, blobs=(owed.digest,), at=1.0)
    found.remember_deliveries({owed.digest: one})
    yield found
    found.close()


@pytest.fixture
def blob(folder):
    """Digests by size, which differ."""
    by_size = {folder.blobs.path(one).stat().st_size: one for one in folder.blobs.digests()}
    return {"shard": by_size[5000], "owed": by_size[900], "left": by_size[4]}


def call(folder: WorkerFolder, verb: str, *, code: int = 0):
    """The verb's JSON, which is all of standard output; its lines, where there is no --format."""
    arguments = [verb, "--folder", str(folder.root)]
    done = CliRunner().invoke(app, [*arguments, "--format", "json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def lines(folder: WorkerFolder, verb: str, *, code: int = 0) -> str:
    done = CliRunner().invoke(app, [verb, "--folder", str(folder.root)])
    assert done.exit_code == code, done.output
    return done.stdout


def damage(folder: WorkerFolder, digest: str) -> None:
    with folder.blobs.path(digest).open("r+b") as file:
        file.write(b"?")


def test_each_blob_is_listed_with_why_it_is_here(folder, blob):
    found = {one["digest"]: one for one in call(folder, "list")["blobs"]}
    assert {name: found[digest]["purpose"] for name, digest in blob.items()} == {
        "shard": "input",
        "owed": "made",
        "left": None,
    }
    assert found[blob["shard"]]["public"]
    text = lines(folder, "list")
    assert blob["shard"][:12] in text
    assert "made here, and the coordinator does not hold it yet" in text
    assert "3 blobs" in text


def test_what_arrives_is_listed_with_its_pieces(folder, tmp_path):
    source = BlobStore(tmp_path / "source")
    data = bytes(2 * PIECE_BYTES + 1)
    pieces = source.pieces(source.add_bytes(data).digest)
    folder.blobs.partial(pieces.ref(), pieces).write_piece(0, data[:PIECE_BYTES])
    assert "1 of 3 pieces arrived" in lines(folder, "list")
    (one,) = [one for one in call(folder, "list")["blobs"] if one["num_pieces"]]
    assert (one["digest"], one["num_missing"]) == (pieces.ref().digest, 2)


def test_a_whole_folder_verifies(folder):
    assert call(folder, "verify") == {"folder": str(folder.root), "damaged": [], "missing": []}
    assert "is what its digest says" in lines(folder, "verify")


def test_a_damaged_input_is_deleted_so_that_it_is_fetched_again(folder, blob):
    damage(folder, blob["shard"])
    (one,) = call(folder, "verify", code=1)["damaged"]
    assert (one["digest"], one["purpose"], one["deleted"]) == (blob["shard"], "input", True)
    assert not folder.blobs.has(blob["shard"])
    assert call(folder, "verify")["damaged"] == []


def test_damage_of_what_only_this_worker_has_is_named_and_nothing_is_deleted(folder, blob):
    damage(folder, blob["owed"])
    text = lines(folder, "verify", code=1)
    assert f"DAMAGED {blob['owed']}: 1 of 1 pieces differ" in text
    assert "the work in it is lost" in text
    assert folder.blobs.has(blob["owed"])


def test_what_was_handed_in_and_is_gone_is_named(folder, blob):
    folder.blobs.delete(blob["owed"])
    assert call(folder, "verify", code=1)["missing"] == [blob["owed"]]
    assert f"MISSING {blob['owed']}" in lines(folder, "verify", code=1)


def test_gc_beside_an_agent_deletes_nothing_that_the_agent_may_use(folder, blob):
    digest = "ab" * 32
    (folder.blobs.root / "partial" / digest).mkdir()
    at = now() - IDLE_SECONDS - 60
    os.utime(folder.blobs.root / "partial" / digest, (at, at))
    done = call(folder, "gc")
    assert (done["agent_running"], done["deleted"]) == (True, [digest])
    assert all(folder.blobs.has(one) for one in blob.values())
    assert "an agent works in the folder" in lines(folder, "gc")


def test_gc_without_an_agent_deletes_what_nothing_needs(folder, blob):
    folder.close()
    done = call(folder, "gc")
    assert (done["agent_running"], done["deleted"]) == (False, [blob["left"]])
    assert done["bytes_freed"] > 0
    assert set(folder.blobs.digests()) == {blob["shard"], blob["owed"]}
    WorkerFolder(folder.root).close()


def test_verify_and_gc_take_no_lock_from_an_agent(folder):
    """A second process, as a volunteer's shell is one."""
    for verb in ("list", "verify", "gc"):
        code = f"from worker.blob_verbs import app; app(['{verb}', '--folder', '{folder.root}'])"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, cwd=Path(__file__).parents[3]
        )
        assert done.returncode == 0, done.stderr


def test_a_folder_that_is_none_is_wrong_usage(tmp_path, monkeypatch):
    with pytest.raises(BadSetting, match="no hdee-worker has worked there"):
        find_root(tmp_path)
    assert not any(tmp_path.iterdir())
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BadSetting, match="there is none"):
        find_root(None)
    base = tmp_path / ".local" / "share" / "hdee"
    (base / "one" / "blobs").mkdir(parents=True)
    assert find_root(None) == base / "one"
    (base / "two" / "blobs").mkdir(parents=True)
    with pytest.raises(BadSetting, match=r"one, .*two"):
        find_root(None)


def test_a_wrong_format_ends_with_2(folder):
    done = CliRunner().invoke(app, ["list", "--folder", str(folder.root), "--format", "xml"])
    assert done.exit_code == 2
