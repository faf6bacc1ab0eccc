"""Challenges and tokens that the api recognises as its own before it looks into the ledger.

Both carry a keyed digest, so that whoever floods the api with inventions costs it no query.
"""

import hashlib
import hmac
import secrets

TOKEN_KEY_PURPOSE = b"hdee-token-v1"
"""From which the coordinator's identity derives the key."""

_MAC_HEX = 32


def new_token(key: bytes) -> str:
    """A bearer token: 32 random bytes and their keyed digest."""
    body = secrets.token_hex(32)
    return body + _mac(key, "token", body)


def is_token(token: str, key: bytes) -> bool:
    """Whether a token was made with this key. Whose it is, and if it holds, says the ledger."""
    body, mac = token[:-_MAC_HEX], token[-_MAC_HEX:]
    return hmac.compare_digest(mac.encode(), _mac(key, "token", body).encode())


def new_nonce(key: bytes, *, expires_at: float) -> str:
    """A nonce that says itself until when it holds, to the millisecond."""
    body = f"{int(expires_at * 1000):016x}{secrets.token_hex(8)}"
    return body + _mac(key, "nonce", body)


def nonce_expiry(nonce: str, key: bytes) -> float | None:
    """Until when a nonce holds; None if it was not made with this key."""
    body, mac = nonce[:-_MAC_HEX], nonce[-_MAC_HEX:]
    if not hmac.compare_digest(mac.encode(), _mac(key, "nonce", body).encode()):
        return None
    return int(body[:16], 16) / 1000


def _mac(key: bytes, purpose: str, body: str) -> str:
    whole = hmac.new(key, f"hdee-{purpose}-v1|{body}".encode(), hashlib.sha256)
    return whole.hexdigest()[:_MAC_HEX]
