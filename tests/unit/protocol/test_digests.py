"""Equal values have equal digests; anything else has another one."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protocol.blobs import BlobRef, PieceList
from protocol.digests import PIECE_BYTES, blob_digest, canonical_bytes, digest_bytes
from protocol.specs import ModelShape

digests = st.binary(min_size=1, max_size=8).map(lambda data: hashlib.sha256(data).hexdigest())


def test_canonical_bytes_do_not_depend_on_the_order_of_keys():
    assert canonical_bytes({"b": 1, "a": [1.5, None]}) == b'{"a":[1.5,null],"b":1}'
    assert canonical_bytes({"a": [1.5, None], "b": 1}) == b'{"a":[1.5,null],"b":1}'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_name_has_no_canonical_bytes(value):
    with pytest.raises(ValueError, match="JSON"):
        canonical_bytes({"x": value})


def test_the_digest_of_a_blob_is_fixed_for_all_time():
    piece = digest_bytes(b"hello")
    expected = hashlib.sha256(f'{{"pieces":["{piece}"],"size":5}}'.encode()).hexdigest()
    assert blob_digest(5, [piece]) == expected


@given(size=st.integers(1, 40 * PIECE_BYTES), data=st.data())
def test_a_piece_list_has_one_digest_for_each_piece(size, data):
    count = -(-size // PIECE_BYTES)
    pieces = tuple(data.draw(st.lists(digests, min_size=count, max_size=count)))
    assert PieceList(size=size, pieces=pieces).ref() == BlobRef(
        digest=blob_digest(size, pieces), size=size
    )
    with pytest.raises(ValidationError, match="expected"):
        PieceList(size=size, pieces=pieces[1:])


@given(size=st.integers(0, 10 * PIECE_BYTES), pieces=st.lists(digests, max_size=3))
def test_another_size_is_another_blob(size, pieces):
    assert blob_digest(size, pieces) != blob_digest(size + 1, pieces)


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": "512"}, {"vocab_size": 0}, {"hidden_size": 33}, {"surprise": 1}],
)
def test_values_refuse_other_types_and_unknown_fields(change):
    good = {
        "vocab_size": 512,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "ffn_width": 64,
        "context_length": 64,
    }
    ModelShape.model_validate(good)
    with pytest.raises(ValidationError):
        ModelShape.model_validate({**good, **change})
