"""Prepare makes shards once: complete, disjoint, reproducible; and refuses text that lacks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from coordinator.folders import RunFolders
from coordinator.runfile import RunFile, load_run_file
from coordinator.text.overlap import OverlapReport
from coordinator.text.prepare import Prepared, PrepareError, prepare
from protocol.blobs import ShardManifest
from shared.blobs import BlobStore
from shared.shards import Shard
from shared.text.tokenizer import open_tokenizer

DRAMA = '[domains.drama]\nsources = [{path = "drama/*.txt", document = "split:(?m)^#"}]'


def prepare_at(path: Path, messages: list[str] | None = None) -> tuple[RunFile, Prepared]:
    run = load_run_file(path)
    said: list[str] = [] if messages is None else messages
    return run, prepare(run, RunFolders(run.folder), progress=said.append)


def documents_of(run: RunFile, manifest: ShardManifest) -> list[str]:
    folders = RunFolders(run.folder)
    root = folders.blobs if manifest.split in ("train", "dev") else folders.sealed
    shard = Shard.read(BlobStore(root).path(manifest.blob.digest), vocab_size=manifest.vocab_size)
    assert shard.num_documents == manifest.num_documents
    assert shard.num_tokens == manifest.num_tokens
    assert shard.num_bytes == manifest.num_bytes
    assert shard.tokens.dtype == np.uint16
    tokenizer = open_tokenizer(folders.tokenizer.read_bytes())
    pairs = zip(shard.document_offsets[:-1], shard.document_offsets[1:], strict=True)
    texts = [tokenizer.decode(shard.tokens[start + 1 : end].tolist()) for start, end in pairs]
    assert [len(text.encode()) for text in texts] == shard.document_bytes.tolist()
    return texts


def test_shards_hold_every_document_once_and_decode_to_it(write_run):
    messages: list[str] = []
    run, prepared = prepare_at(write_run(), messages)
    held: list[str] = []
    for name in ("cooking", "drama", "python"):
        splits = [prepared.shard(name, split) for split in ("train", "dev", "gate", "test")]
        texts = [text for manifest in splits for text in documents_of(run, manifest)]
        assert len(texts) == len(set(texts)) == 600
        assert prepared.shard(name, "test").num_documents >= 30
        held += texts
    general = [documents_of(run, prepared.shard("general", split)) for split in ("train", "dev")]
    assert set(held).isdisjoint(general[0])
    for number in (0, 299, 300, 599):
        assert any(text.startswith(f"# {number} ") for text in held)
    with pytest.raises(KeyError):
        prepared.shard("general", "test")
    assert any("text 4 of 4, python: train tokens 100%" in message for message in messages)


def test_gate_and_test_shards_are_in_the_sealed_folder_alone(write_run):
    run, prepared = prepare_at(write_run())
    folders = RunFolders(run.folder)
    sealed = {shard.blob.digest for shard in prepared.shards if shard.split in ("gate", "test")}
    public = {shard.blob.digest for shard in prepared.shards} - sealed
    assert set(BlobStore(folders.sealed).digests()) == sealed
    assert set(BlobStore(folders.blobs).digests()) == public | {prepared.tokenizer.digest}
    assert folders.sealed.stat().st_mode & 0o777 == 0o700


def test_the_same_text_and_key_give_the_same_shards(write_run):
    path = write_run()
    _, first = prepare_at(path)
    shutil.rmtree(path.parent / "state")
    whole = (path.parent / "drama" / "0.txt").read_text() + "\n"
    whole += (path.parent / "drama" / "1.txt").read_text()
    (path.parent / "drama" / "0.txt").unlink()
    (path.parent / "drama" / "1.txt").write_text(whole)
    assert prepare_at(path)[1] == first
    shutil.rmtree(path.parent / "state")
    (path.parent / "keys" / "split.key").write_text("cd" * 32)
    other = prepare_at(path)[1]
    assert other.tokenizer == first.tokenizer
    assert other.shard("drama", "test") != first.shard("drama", "test")


def test_a_second_prepare_reads_nothing_again(write_run):
    path = write_run()
    _, first = prepare_at(path)
    shutil.rmtree(path.parent / "drama")
    messages: list[str] = []
    assert prepare_at(path, messages)[1] == first
    assert messages == []


def test_nothing_counts_until_prepared_json_is_there(write_run):
    path = write_run()
    run, first = prepare_at(path)
    RunFolders(run.folder).prepared.unlink()
    assert prepare_at(path)[1] == first


def test_changed_text_settings_are_refused_with_what_changed(write_run):
    prepare_at(write_run())
    changed = write_run(
        ("vocab_size = 320", "vocab_size = 330"), (DRAMA, DRAMA + "\nmin_chars = 5")
    )
    with pytest.raises(PrepareError) as caught:
        prepare_at(changed)
    assert "tokenizer.vocab_size: 320 became 330" in str(caught.value)
    assert "domains.drama.min_chars: 1 became 5" in str(caught.value)
    untouched = write_run(
        (DRAMA, DRAMA + '\ndifficulty = "easy"'), ("homogeneous_steps = 8", "homogeneous_steps = 9")
    )
    prepare_at(untouched)


def test_a_changed_split_key_is_refused_without_being_told(write_run):
    path = write_run()
    prepare_at(path)
    (path.parent / "keys" / "split.key").write_text("cd" * 32)
    with pytest.raises(PrepareError, match="split_key_sha256") as caught:
        prepare_at(path)
    assert "cdcd" not in str(caught.value)


def test_lost_shards_are_named(write_run):
    path = write_run()
    run, prepared = prepare_at(path)
    BlobStore(RunFolders(run.folder).sealed).delete(prepared.shard("drama", "gate").blob.digest)
    with pytest.raises(PrepareError, match="drama gate are gone"):
        prepare_at(path)


def test_a_damaged_prepared_json_is_refused(write_run):
    path = write_run()
    run, _ = prepare_at(path)
    RunFolders(run.folder).prepared.write_text('{"text": {}}')
    with pytest.raises(PrepareError, match=r"prepared\.json: damaged"):
        prepare_at(path)


def test_an_empty_domain_is_refused(write_run):
    path = write_run()
    for file in (path.parent / "drama").iterdir():
        file.write_text("\n \n")
    with pytest.raises(PrepareError, match="drama: 0 documents for the train shard of 0 in all"):
        prepare_at(path)
    assert not (path.parent / "state" / "prepared.json").exists()


def test_a_domain_that_the_general_text_contains_is_refused_with_the_count(write_run):
    path = write_run()
    shutil.copy(path.parent / "general" / "0.txt", path.parent / "drama" / "0.txt")
    shutil.copy(path.parent / "general" / "1.txt", path.parent / "drama" / "1.txt")
    path = write_run_again(path, "paragraphs:300")
    with pytest.raises(PrepareError, match=r"drama: 0 documents .* 300 duplicate"):
        prepare_at(path)


def write_run_again(path: Path, rule: str) -> Path:
    text = path.read_text()
    path.write_text(text.replace(DRAMA, DRAMA.replace("split:(?m)^#", rule)))
    return path


def test_too_few_documents_for_a_test_shard_are_refused_with_the_numbers(write_run):
    path = write_run((DRAMA, DRAMA + "\nmax_bytes = 20_000"))
    with pytest.raises(PrepareError) as caught:
        prepare_at(path)
    message = str(caught.value)
    assert "drama: " in message
    assert "documents for the test shard of" in message
    assert "expected at least 30" in message
    assert "over max_bytes; max_bytes 20000" in message


def test_too_few_tokens_for_a_batch_are_refused_now_and_later(write_run):
    recipe = (
        "micro_batch = 2\nsequence_length = 32\nschedule_steps",
        "micro_batch = 2000\nsequence_length = 32\nschedule_steps",
    )
    with pytest.raises(PrepareError, match=r"cooking: \d+ train tokens, expected at least 64001"):
        prepare_at(write_run(recipe))
    prepare_at(write_run())
    with pytest.raises(PrepareError, match="one batch of 2000 sequences of 32"):
        prepare_at(write_run(recipe))


def test_files_in_another_encoding_are_skipped_and_counted(write_run):
    path = write_run()
    (path.parent / "drama" / "latin.txt").write_bytes("# Elsinore à nuit".encode("latin-1"))
    messages: list[str] = []
    prepare_at(path, messages)
    counts = [
        message for message in messages if "drama" in message and "files not UTF-8" in message
    ]
    assert len(counts) == 1
    assert "1 files not UTF-8" in counts[0]


def test_a_file_without_the_expected_form_is_named(write_run):
    path = write_run_again(write_run(), "json:/*")
    with pytest.raises(PrepareError, match=r"drama: .*0\.txt: not JSON"):
        prepare_at(path)


@pytest.mark.parametrize(("key", "words"), [("zz", "64 hexadecimal"), ("abcd", "2 bytes")])
def test_a_damaged_split_key_is_refused(write_run, key, words):
    path = write_run()
    (path.parent / "keys" / "split.key").write_text(key)
    with pytest.raises(PrepareError, match=words):
        prepare_at(path)


def test_a_given_tokenizer_is_used(write_run, tmp_path):
    run, _ = prepare_at(write_run())
    model = RunFolders(run.folder).tokenizer.read_bytes()
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "given.model").write_bytes(model)
    _, prepared = prepare_at(write_run(("vocab_size = 320", 'model = "given.model"')))
    assert prepared.vocab_size == 320
    assert (tmp_path / "state" / "tokenizer.model").read_bytes() == model
    settings = json.loads((tmp_path / "state" / "prepared.json").read_text())["text"]["tokenizer"]
    assert settings == {"vocab_size": None, "model": "given.model"}


def test_what_held_out_shards_share_with_train_shards_is_measured_and_kept(write_run):
    path = write_run()
    same = " ".join(["again"] * 300)
    with (path.parent / "drama" / "0.txt").open("a") as file:
        file.writelines(f"\n# {number} more {same} {number}" for number in range(9_000, 9_200))
    messages: list[str] = []
    run, _ = prepare_at(path, messages)
    report = OverlapReport.model_validate_json(RunFolders(run.folder).overlap.read_bytes())
    assert {(one.domain, one.split) for one in report.measured} == {
        *((name, split) for name in run.domains for split in ("dev", "gate", "test")),
        ("general", "dev"),
    }
    shares = {
        (one.domain, one.train): one.share_of_runs for one in report.overlaps if one.split == "test"
    }
    assert shares["drama", "drama"] > 0.5
    assert shares["drama", "cooking"] == shares["python", "general"] == 0.0
    assert any(message.startswith("WARNING") and "drama" in message for message in messages)


def test_settings_that_say_nothing_leave_earlier_runs_as_they_are(write_run):
    path = write_run()
    prepare_at(path)
    prepared = path.parent / "state" / "prepared.json"
    drama = json.loads(prepared.read_text())["text"]["domains"]["drama"]
    assert sorted(drama) == ["max_bytes", "max_chars", "min_chars", "sources"]
    assert sorted(drama["sources"][0]) == ["document", "exclude", "path"]
    with pytest.raises(PrepareError, match=r"drama\.repeated_line_chars: null became 99"):
        prepare_at(write_run((DRAMA, DRAMA + "\nrepeated_line_chars = 99")))


def test_repeated_lines_are_left_out_and_counted(write_run):
    path = write_run((DRAMA, DRAMA + "\nrepeated_line_chars = 20"))
    with (path.parent / "drama" / "1.txt").open("a") as file:
        file.write("\n# 9000 of its own\n" + "the same long line of a page's foot\n" * 3)
    messages: list[str] = []
    prepare_at(path, messages)
    (line,) = [message for message in messages if "characters in repeated lines" in message]
    assert "70 characters in repeated lines" in line
