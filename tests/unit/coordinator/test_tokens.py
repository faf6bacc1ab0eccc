"""What the api recognises as its own, before it looks anywhere."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from coordinator.api.tokens import is_token, new_nonce, new_token, nonce_expiry

KEY, OTHER = b"0123456789abcdef", b"fedcba9876543210"


def test_a_token_is_known_under_its_key_alone():
    token = new_token(KEY)
    assert is_token(token, KEY)
    assert not is_token(token, OTHER)
    assert token != new_token(KEY)


@given(st.text(max_size=200))
def test_no_invention_is_a_token_or_a_nonce(text):
    assert not is_token(text, KEY)
    assert nonce_expiry(text, KEY) is None


@given(st.integers(0, 95), st.sampled_from("0123456789abcdefg\xff"))
def test_a_changed_token_is_none(place, character):
    token = new_token(KEY)
    changed = token[:place] + character + token[place + 1 :]
    assert is_token(changed, KEY) is (changed == token)


@pytest.mark.parametrize("expires_at", [0.0, 1.5, 1_700_000_000.123])
def test_a_nonce_says_until_when_it_holds(expires_at):
    nonce = new_nonce(KEY, expires_at=expires_at)
    assert nonce_expiry(nonce, KEY) == pytest.approx(expires_at, abs=1e-3)
    assert nonce_expiry(nonce, OTHER) is None


def test_the_life_of_a_nonce_cannot_be_prolonged():
    nonce = new_nonce(KEY, expires_at=1000.0)
    longer = f"{int(9e9):016x}{nonce[16:]}"
    assert nonce_expiry(longer, KEY) is None


def test_a_nonce_is_no_token_and_a_token_no_nonce():
    assert not is_token(new_nonce(KEY, expires_at=1.0), KEY)
    assert nonce_expiry(new_token(KEY), KEY) is None
