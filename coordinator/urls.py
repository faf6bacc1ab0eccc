"""Signed URLs: how the api lets a peer read or upload one blob at the network role. Pure.

The api answers 307 to a URL that names the blob, what may be done, the peer it was made for and
when it expires, under an HMAC-SHA256 of all of these. The network role needs no session and no
token.
"""

import hashlib
import hmac
from typing import Literal, NamedTuple
from urllib.parse import urlencode

from protocol.digests import canonical_bytes

Purpose = Literal["get", "put"]

URL_SECRET_PURPOSE = b"hdee-url-v1"
"""What api and network derive their shared secret for, from the coordinator's key."""


class UrlRefused(Exception):
    """A URL is unsigned, expired, for another purpose or altered; `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SignedQuery(NamedTuple):
    """The query parameters of a signed URL, as they arrive. `expires`: seconds since 1970."""

    purpose: str
    peer: str
    expires: str
    signature: str


def sign_url(
    base_url: str, *, digest: str, purpose: Purpose, peer: str, expires_at: int, secret: bytes
) -> str:
    """The URL under `base_url` where `peer` may do `purpose` to the blob until `expires_at`.

    Raises ValueError for an empty peer: no URL is for everybody.
    """
    if not peer:
        raise ValueError("peer '': expected a peer id")
    expires = str(expires_at)
    signature = _signature(digest, SignedQuery(purpose, peer, expires, ""), secret)
    query = urlencode(SignedQuery(purpose, peer, expires, signature)._asdict())
    return f"{base_url.rstrip('/')}/blobs/{digest}?{query}"


def check_url(
    digest: str, query: SignedQuery, *, purpose: Purpose, now: float, secret: bytes
) -> None:
    """Return if the URL allows `purpose` on the blob at `now`; raise UrlRefused otherwise."""
    if not query.peer or not query.signature:
        raise UrlRefused("the URL is not signed")
    expected = _signature(digest, query, secret)
    if not hmac.compare_digest(expected.encode(), query.signature.encode("utf-8", "replace")):
        raise UrlRefused("the URL's signature does not fit")
    if query.purpose != purpose:
        raise UrlRefused(f"the URL is for {query.purpose!r}, not for {purpose!r}")
    if int(query.expires) <= now:
        raise UrlRefused("the URL has expired; ask the api for a new one")


def _signature(digest: str, query: SignedQuery, secret: bytes) -> str:
    signed = {"digest": digest, **query._asdict(), "signature": "hdee-url-v1"}
    return hmac.new(secret, canonical_bytes(signed), hashlib.sha256).hexdigest()
