"""Signed URLs hold for one blob, one purpose, one peer, and not for long."""

from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.urls import Purpose, SignedQuery, UrlRefused, check_url, sign_url

SECRET = b"s" * 32
DIGEST = "ab" * 32
PEER = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
NOW = 1_800_000_000.0


def _query(url: str) -> SignedQuery:
    fields = parse_qs(urlsplit(url).query, strict_parsing=True)
    return SignedQuery(**{name: values[0] for name, values in fields.items()})


def _url(purpose: Purpose = "get") -> str:
    return sign_url(
        "http://host:8001/",
        digest=DIGEST,
        purpose=purpose,
        peer=PEER,
        expires_at=int(NOW) + 60,
        secret=SECRET,
    )


def test_a_signed_url_names_the_blob_and_is_accepted_until_it_expires() -> None:
    assert _url().startswith(f"http://host:8001/blobs/{DIGEST}?purpose=get&")
    for now in (NOW, NOW + 59.9):
        check_url(DIGEST, _query(_url()), purpose="get", now=now, secret=SECRET)
    with pytest.raises(UrlRefused, match="expired"):
        check_url(DIGEST, _query(_url()), purpose="get", now=NOW + 60, secret=SECRET)


@pytest.mark.parametrize(("made", "asked"), [("get", "put"), ("put", "get")])
def test_a_url_is_good_for_its_purpose_only(made: Purpose, asked: Purpose) -> None:
    with pytest.raises(UrlRefused, match=f"for '{made}', not for '{asked}'"):
        check_url(DIGEST, _query(_url(made)), purpose=asked, now=NOW, secret=SECRET)


@given(
    field=st.sampled_from(SignedQuery._fields),
    value=st.text(max_size=70),
)
def test_any_altered_field_is_refused(field: str, value: str) -> None:
    query = _query(_url())
    if getattr(query, field) == value:
        return
    with pytest.raises(UrlRefused):
        check_url(DIGEST, query._replace(**{field: value}), purpose="get", now=NOW, secret=SECRET)


def test_a_url_of_another_blob_or_secret_is_refused() -> None:
    with pytest.raises(UrlRefused, match="signature"):
        check_url("cd" * 32, _query(_url()), purpose="get", now=NOW, secret=SECRET)
    with pytest.raises(UrlRefused, match="signature"):
        check_url(DIGEST, _query(_url()), purpose="get", now=NOW, secret=b"t" * 32)


def test_no_url_is_signed_for_everybody() -> None:
    with pytest.raises(ValueError, match="peer"):
        sign_url("http://host", digest=DIGEST, purpose="get", peer="", expires_at=1, secret=SECRET)
