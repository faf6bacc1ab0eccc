"""Own text: what the volunteer names, what is made of it, and what may be done with it."""

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.messages import Offer, Parent
from protocol.owndata import DomainOffer, OwnDataTerms
from shared.shards import Shard
from shared.text.tokenizer import learn
from worker.owndata import prepare
from worker.owndata.flags import NotOffered, agreed_to_offer, parse_own_texts, what_leaves
from worker.owndata.prepare import prepare_own_text
from worker.owndata.reading import DOCUMENT_CHARS, OwnTextError, read_own_text
from worker.owndata.texts import DEV, TRAIN, OwnNote, OwnText, OwnTexts, broken_promise
from worker.settings import BadSetting

VOCAB = 330


def sentence(number: int) -> str:
    return f"note {number}: the quick brown fox jumps over the lazy dog by the river at {number}"


def write_texts(folder: Path, count: int = 80) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.txt").write_text(sentence(number))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(learn([sentence(number) for number in range(300)], vocab_size=VOCAB))
    return path


@pytest.fixture
def terms(make):
    def build(**changes) -> OwnDataTerms:
        values = {
            "tokenizer": make.blob("tokenizer"),
            "vocab_size": VOCAB,
            "ffn_width": 64,
            "num_steps": 20,
            "min_train_tokens": 100,
            "harm_percent": 5.0,
            "max_domains": 3,
            "reserved": (),
        }
        return OwnDataTerms.model_validate({**values, **changes})

    return build


def prepare_in(folder: Path, text: Path, tokenizer: Path, terms: OwnDataTerms) -> DomainOffer:
    return prepare_own_text(
        OwnText("notes", text), tokenizer=tokenizer, terms=terms, into=folder / "notes"
    )


@pytest.mark.parametrize(
    "value",
    ["notes", "=x", "Notes=.", "no tes=.", "notes=", "../x=.", "n" * 64 + "=.", "-x=."],
)
def test_a_flag_that_is_no_name_and_path_is_refused_with_an_example(value):
    with pytest.raises(BadSetting, match="expected NAME=PATH") as refused:
        parse_own_texts([value])
    assert repr(value) in str(refused.value)


def test_a_path_that_is_not_there_a_name_twice_and_too_many_are_refused(tmp_path):
    with pytest.raises(BadSetting, match=r"there is no .*nowhere"):
        parse_own_texts([f"notes={tmp_path}/nowhere"])
    with pytest.raises(BadSetting, match="expected each name once"):
        parse_own_texts([f"notes={tmp_path}", f"notes={tmp_path}"])
    with pytest.raises(BadSetting, match="5 domains, expected at most 4"):
        parse_own_texts([f"n{number}={tmp_path}" for number in range(5)])
    assert parse_own_texts([f"notes={tmp_path}"]) == (OwnText("notes", tmp_path),)
    assert parse_own_texts(None) == ()


def test_what_leaves_is_shown_before_anything_and_needs_a_yes(tmp_path, capsys, monkeypatch):
    texts = OwnTexts(tmp_path, (OwnText("notes", tmp_path),))
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    with pytest.raises(NotOffered, match="say --yes"):
        agreed_to_offer(texts, given=False)
    assert what_leaves(texts.offered) in capsys.readouterr().out
    assert agreed_to_offer(texts, given=True)
    shown = capsys.readouterr().out
    assert "notes: the text stays on this machine" in shown
    assert "memorise" in shown


def test_a_no_starts_nothing_and_what_was_offered_before_is_not_asked_again(
    tmp_path, capsys, monkeypatch, terms, make
):
    texts = OwnTexts(tmp_path, (OwnText("notes", tmp_path),))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _question: "n")
    assert not agreed_to_offer(texts, given=False)
    assert "nothing was offered" in capsys.readouterr().out
    shard = {"blob": make.blob("own"), "num_documents": 1, "num_tokens": 1}
    offer = DomainOffer.model_validate({"domain": "notes", "train": shard, "dev": shard})
    texts.folder("notes").mkdir(parents=True)
    texts.keep(OwnNote(offer=offer, terms=terms()))
    assert agreed_to_offer(texts, given=False)


def test_the_command_refuses_a_bad_flag_with_words_and_2(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from worker.main import main; main()"),
            *("join", "http://127.0.0.1:9", "--folder", str(tmp_path / "worker")),
            *("--offer-domain", "notes=/nowhere"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--offer-domain 'notes=/nowhere': there is no /nowhere" in done.stderr
    assert not (tmp_path / "worker").exists()


def test_files_and_lines_become_distinct_documents(tmp_path):
    folder = write_texts(tmp_path / "texts", 40)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "more.md").write_text("a heading\n\nsome words")
    lines = [json.dumps({"text": f"line {number}"}) for number in range(5)]
    (folder / "lines.jsonl").write_text("\n".join([*lines, lines[0]]))
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    found = {document.text for document in read_own_text(folder).documents}
    assert len(found) == 46
    assert {"line 4", "a heading\n\nsome words", sentence(0)} <= found
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(sentence(number) * 20 for number in range(200)))
    assert all(len(one.text) <= DOCUMENT_CHARS for one in read_own_text(book).documents)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"", "0 distinct documents .* expected at least 30"),
        ("a.txt", b"just one", r"1 distinct documents .*\(8 bytes\), expected at least 30"),
        ("a.txt", b"MZ\0\0 binary", "a binary file, expected text as UTF-8"),
        ("a.txt", b"caf\xe9", "expected text as UTF-8"),
        ("a.jsonl", b'{"words": 1}', "line 1: expected an object with text under 'text'"),
        ("a.jsonl", b"{", "line 1: not JSON"),
    ],
)
def test_text_that_cannot_be_used_is_named_with_what_was_expected(tmp_path, name, data, words):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(OwnTextError, match=words) as refused:
        read_own_text(path)
    assert name in str(refused.value)


def test_an_empty_folder_and_a_pipe_are_refused(tmp_path):
    with pytest.raises(OwnTextError, match=r"expected files named \.txt, \.md, \.jsonl"):
        read_own_text(tmp_path)
    with pytest.raises(OwnTextError, match="expected a regular file"):
        read_own_text(Path("/dev/null"))


def test_the_same_text_gives_the_same_shards_and_nobody_else_may_read_them(
    tmp_path, tokenizer, terms
):
    texts = write_texts(tmp_path / "texts")
    offer = prepare_in(tmp_path / "one", texts, tokenizer, terms())
    assert prepare_in(tmp_path / "two", texts, tokenizer, terms()) == offer
    assert prepare_in(tmp_path / "one", texts, tokenizer, terms()) == offer
    assert offer.train.num_documents + offer.dev.num_documents == 80
    for name, shard in ((TRAIN, offer.train), (DEV, offer.dev)):
        path = tmp_path / "one" / "notes" / name
        held = Shard.read(path, vocab_size=VOCAB)
        assert (held.num_documents, held.num_tokens) == (shard.num_documents, shard.num_tokens)
        assert path.stat().st_size == shard.blob.size
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "one" / "notes").stat().st_mode) == 0o700


def test_too_little_text_is_refused_with_the_numbers_and_leaves_what_was_there(
    tmp_path, tokenizer, terms
):
    texts = write_texts(tmp_path / "texts", 40)
    before = prepare_in(tmp_path, texts, tokenizer, terms())
    with pytest.raises(OwnTextError, match=r"\d+ train tokens in 38 documents, .* 99999 for 20"):
        prepare_in(tmp_path, texts, tokenizer, terms(min_train_tokens=99_999))
    held = Shard.read(tmp_path / "notes" / TRAIN, vocab_size=VOCAB)
    assert held.num_tokens == before.train.num_tokens
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "texts"]


def test_the_child_prints_the_offer_or_what_is_wrong(tmp_path, tokenizer, terms, capsys):
    texts = write_texts(tmp_path / "texts")
    flags = ["--domain", "notes", "--tokenizer", str(tokenizer), "--into", str(tmp_path / "own")]
    flags += ["--terms", terms().model_dump_json(), "--path"]
    assert prepare.main([*flags, str(texts)]) == 0
    assert DomainOffer.model_validate_json(capsys.readouterr().out).domain == "notes"
    assert prepare.main([*flags, str(tmp_path / "own")]) == 1
    assert "found none" in json.loads(capsys.readouterr().out)["error"]


@pytest.fixture
def kept(tmp_path, tokenizer, terms):
    """The worker's folder with a domain in it, and its note."""
    texts = write_texts(tmp_path / "texts")
    owned = OwnTexts(tmp_path, (OwnText("notes", texts),))
    agreed = terms()
    offer = prepare_own_text(
        OwnText("notes", texts), tokenizer=tokenizer, terms=agreed, into=owned.folder("notes")
    )
    note = OwnNote(offer=offer, terms=agreed)
    owned.keep(note)
    return owned, note


def test_shards_are_found_by_digest_only_while_their_domain_is_offered(kept, tmp_path):
    owned, note = kept
    digest = note.offer.train.blob.digest
    assert owned.digests() == (digest,)
    assert owned.train_shard(digest) == tmp_path / "own" / "notes" / TRAIN
    assert owned.train_shard(note.offer.dev.blob.digest) is None
    silent = OwnTexts(tmp_path)
    assert silent.digests() == ()
    assert silent.train_shard(digest) is None
    (tmp_path / "own" / "notes" / "own.json").write_text("{torn")
    assert owned.digests() == ()


def test_the_same_text_under_another_name_is_found(kept):
    owned, note = kept
    assert owned.twin_of(note.offer) is None
    renamed = note.offer.model_copy(update={"domain": "other"})
    assert owned.twin_of(renamed) == "notes"


def offer_on(make, note, **changes) -> Offer:
    parent = make.spec()
    spec = make.spec(domain="notes", parent=parent.digest).model_copy(
        update={"train_shard": note.offer.train.blob.digest, **changes}
    )
    return Offer(
        assignment="a" + "0" * 16,
        fencing=1,
        expires_in=10.0,
        spec=spec,
        shard=note.offer.train.blob,
        parent=Parent(shape=parent.shape, manifest=make.manifest(parent, "12D3KooW" + "A" * 44)),
        resume=None,
        checkpoint_seconds=10.0,
        reason="",
    )


def test_own_text_trains_what_was_agreed_to_and_nothing_else(kept, make):
    owned, note = kept
    assert broken_promise(offer_on(make, note), note) is None
    good = offer_on(make, note).spec
    for changes, words in (
        ({"domain": "spying"}, "domain spying on your own data: expected notes"),
        ({"train": good.train.model_copy(update={"num_steps": 10})}, "steps 10 .* expected 20"),
        (
            {"shape": good.shape.model_copy(update={"ffn_width": 96})},
            "FFN width 96 .* expected 64",
        ),
        ({"train_shard": "0" * 64}, "train shard 0000"),
    ):
        problem = owned.problem_of(offer_on(make, note, **changes))
        assert problem is not None
        assert re.search(words, problem)
