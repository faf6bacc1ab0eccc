"""Which versions of the protocol a coordinator understands. Pure.

The version is one number. It is raised with the first release that changes a message, a record or a
digest; docs/protocol.md says how. A coordinator takes part with workers of its own version and of
the KEPT ones before; a worker that is newer than its coordinator is told so.
"""

from typing import Final

from protocol import PROTOCOL_VERSION

HEADER: Final = "HDEE-Protocol"
"""Every request of a worker names its version in this header; one that does not is of version 1."""

KEPT: Final = 2
"""Versions before a coordinator's own that it still understands."""

_DIGITS = 6


class NoVersion(ValueError):
    """A header that names no version; the message says what was expected."""


def is_understood(*, worker: int, coordinator: int) -> bool:
    """Whether a coordinator takes part with a worker of this version."""
    return max(1, coordinator - KEPT) <= worker <= coordinator


def read_version(header: str | None) -> int:
    """The version that a request names. Raises NoVersion."""
    if header is None:
        return 1
    text = header.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) > 0):
        raise NoVersion(f"{HEADER} {header[:40]!r}: expected a number such as {PROTOCOL_VERSION}")
    return int(text)


def problem_of(worker: int, *, software: str) -> str | None:
    """Why this coordinator, of `software`, refuses a worker, and what to install; None: not."""
    if is_understood(worker=worker, coordinator=PROTOCOL_VERSION):
        return None
    oldest = max(1, PROTOCOL_VERSION - KEPT)
    speaks = f"this coordinator speaks {PROTOCOL_VERSION} and understands {oldest} to it"
    if worker < PROTOCOL_VERSION:
        return (
            f"protocol_version {worker}: too old, {speaks}; install hdee of its release or newer: "
            f"pip install 'hdee>={software}'"
        )
    return (
        f"protocol_version {worker}: newer than this coordinator, which speaks {PROTOCOL_VERSION}; "
        f"install hdee of its release: pip install 'hdee=={software}', or wait for its operator to "
        "upgrade"
    )
