"""What a document is, which are kept, and that splits depend on the text and the key alone."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.text.documents import (
    Collection,
    Document,
    DocumentError,
    documents_of,
    split_documents,
)


def documents(rule: str, text: str) -> list[str]:
    return list(documents_of(rule, text.encode()))


def test_a_whole_file_is_one_document_with_plain_newlines():
    assert documents("file", "\r\n  a\r\n\tb \r\n\r\n") == ["  a\n\tb"]
    assert documents("file", " \n\t\n") == []
    assert list(documents_of("file", b"\xef\xbb\xbfa")) == ["a"]


def test_a_split_begins_a_document_at_each_match_and_keeps_what_comes_before():
    play = "THE PLAY\nACT I\nSCENE I. A hall.\nEnter.\nSCENE II. A wood.\nExeunt.\n"
    assert documents(r"split:(?m)^(?:ACT|SCENE)", play) == [
        "THE PLAY",
        "ACT I",
        "SCENE I. A hall.\nEnter.",
        "SCENE II. A wood.\nExeunt.",
    ]


@given(st.text(alphabet="#ab \n", max_size=60))
def test_a_split_loses_nothing_but_blank_space(text):
    joined = "".join(documents(r"split:(?m)^#", text))
    assert "".join(joined.split()) == "".join(text.split())


def test_paragraphs_are_packed_up_to_the_limit():
    text = "aaaa\n\nbbbb\n \ncc\n\n\ndddddddddddddddd\n\ne"
    assert documents("paragraphs:10", text) == ["aaaa\n\nbbbb", "cc", "dddddddddddddddd", "e"]


def test_a_json_pointer_meets_each_string_it_matches():
    data = {"breakfast": [{"recipe": {"en": "Boil."}}, {"recipe": {"en": 3}}, {"recipe": []}, 4]}
    assert documents("json:/*/*/recipe/en", json.dumps(data)) == ["Boil."]
    assert documents("json:/a~1b/1", json.dumps({"a/b": ["x", "y"]})) == ["y"]
    assert documents("json:/a/7", json.dumps({"a": ["x"]})) == []


def test_json_text_gathers_the_strings_under_a_key_without_markup():
    data = {
        "Geography": {"text": "<p>A &amp; B</p> <p>under  <b>5</b> &lt; 6 <5%</p>", "note": "no"},
        "People": {"more": [{"text": ["one", {"text": "two"}]}]},
    }
    assert documents("json-text:text", json.dumps(data)) == ["A & B\nunder 5 < 6 <5%\none\ntwo"]


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_what_is_not_json_is_refused(text):
    with pytest.raises(DocumentError, match="not JSON"):
        documents("json:/*", text)


def test_other_encodings_are_not_guessed():
    with pytest.raises(UnicodeDecodeError):
        list(documents_of("file", "é".encode("latin-1")))


def collected(texts: list[str], **limits: int) -> Collection:
    collection = Collection(**{"min_chars": 1, "max_chars": 100, "max_bytes": 10_000} | limits)
    collection.add(texts)
    return collection


@given(
    st.lists(st.text("ab", min_size=1, max_size=12), max_size=40),
    st.integers(1, 120),
    st.randoms(use_true_random=False),
)
def test_what_is_kept_does_not_depend_on_the_order_of_files(texts, max_bytes, shuffler):
    first = collected(texts, max_bytes=max_bytes)
    shuffler.shuffle(texts)
    second = collected(texts, max_bytes=max_bytes)
    assert first.documents == second.documents
    ordered = sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())
    total, expected = 0, []
    for text in ordered:
        total += len(text)
        if total > max_bytes:
            break
        expected.append(text)
    assert [document.text for document in first.documents] == expected
    assert first.num_bytes == sum(map(len, expected))


def test_what_is_left_out_is_counted_by_reason():
    collection = collected(["a", "ab", "ab", "abc", "abcdef"], min_chars=2, max_chars=5)
    assert {document.text for document in collection.documents} == {"ab", "abc"}
    assert collection.left_out == {
        "too short": 1,
        "too long": 1,
        "duplicate": 1,
        "over max_bytes": 0,
    }


def test_documents_that_another_text_has_are_duplicates():
    other = collected(["same"])
    seen = {document.digest for document in other.documents}
    collection = Collection(min_chars=1, max_chars=9, max_bytes=99, seen=seen)
    collection.add(["same", "mine"])
    assert [document.text for document in collection.documents] == ["mine"]


def test_lone_surrogates_cannot_become_a_document():
    with pytest.raises(UnicodeEncodeError):
        collected(["\ud800"])


def digested(count: int) -> list[Document]:
    digests = sorted(hashlib.sha256(str(number).encode()).digest() for number in range(count))
    return [Document(digest=digest, text="", num_bytes=0) for digest in digests]


@given(st.integers(0, 700))
def test_splits_are_disjoint_complete_and_have_their_fractions(count):
    documents = digested(count)
    splits = split_documents(documents, split_key=b"k" * 32)
    assert sorted(document for split in splits.values() for document in split) == documents
    for name, fraction in {"test": 0.08, "gate": 0.06, "dev": 0.06}.items():
        assert len(splits[name]) == pytest.approx(fraction * count, abs=0.5)
        assert splits[name] == sorted(splits[name])


def test_the_general_text_has_train_and_dev_alone():
    splits = split_documents(digested(100), split_key=None)
    assert {name: len(split) for name, split in splits.items()} == {"train": 94, "dev": 6}


def test_gate_and_test_documents_change_with_the_key():
    documents = digested(400)
    one, same, other = (
        split_documents(documents, split_key=key * 32) for key in (b"1", b"1", b"2")
    )
    assert one == same
    assert one["test"] != other["test"]
    assert one["gate"] != other["gate"]


def test_each_match_is_a_document_of_its_groups():
    terms = 'name: Cyst\ndef: "A sac."\nname: Scar\nname: Node\ndef: "A \\"lump\\"."\n'
    rule = r'match:(?m)^name: (.+)\ndef: "((?:[^"\\]|\\.)*)"'
    assert documents(rule, terms) == ["Cyst\nA sac.", 'Node\nA \\"lump\\".']
    assert documents(r"match:\d+", "a1b22") == ["1", "22"]


def test_strings_under_a_key_may_be_documents_of_their_own():
    nested = json.dumps({"a": [{"text": "<p>one</p>"}, {"b": {"text": ["two", 3]}}], "c": "no"})
    assert documents("json-each:text", nested) == ["one", "two"]


def test_each_line_of_json_is_a_document():
    assert documents("jsonl:text", '{"text": "one"}\n\n{"text": "two\\nlines", "id": 3}\n') == [
        "one",
        "two\nlines",
    ]
    with pytest.raises(DocumentError, match="line 2: expected an object with text under 'text'"):
        documents("jsonl:text", '{"text": "one"}\n{"body": "two"}\n')
    with pytest.raises(DocumentError, match="line 1: not JSON"):
        documents("jsonl:text", "one\n")


def test_docstrings_are_documents_without_their_indentation():
    code = '"""Module."""\nclass A:\n    """A class.\n\n    More.\n    """\n    def f(self): ...\n'
    assert documents("docstrings", code + 'async def g():\n    r"""\\d."""\n') == [
        "Module.",
        "A class.\n\nMore.",
        "\\d.",
    ]
    with pytest.raises(DocumentError, match="not Python"):
        documents("docstrings", "def (")
