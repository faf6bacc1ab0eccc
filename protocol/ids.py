"""Identifiers: strings whose form is checked wherever they enter."""

from typing import Annotated

from pydantic import StringConstraints

_SLUG = r"^[a-z0-9][a-z0-9_.-]{0,62}$"

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""Lower-case hexadecimal SHA-256."""

PeerId = Annotated[str, StringConstraints(pattern=r"^12D3KooW[1-9A-HJ-NP-Za-km-z]{44}$")]
"""A libp2p peer id of an Ed25519 key, in base58."""

WorkerId = PeerId
"""A worker is known by the peer id of its agent's key, everywhere."""

DomainId = Annotated[str, StringConstraints(pattern=_SLUG)]
RunId = Annotated[str, StringConstraints(pattern=_SLUG)]

AssignmentId = Annotated[str, StringConstraints(pattern=r"^a[0-9a-f]{16}$")]
RequestId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""Chosen by the client, so that a repeated request is answered and not repeated."""

Signature = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
"""Lower-case hexadecimal Ed25519 signature."""

Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Maddr = Annotated[str, StringConstraints(pattern=r"^/[\x21-\x7e]{1,255}$")]
"""A libp2p multiaddress in its text form."""
