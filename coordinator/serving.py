"""What must be right before a coordinator listens: its keys, its addresses, its certificate."""

import ipaddress
import socket
from pathlib import Path

from coordinator.api.auth import invite_token
from coordinator.folders import RunFolders
from coordinator.runfile import RunFile
from coordinator.sections import Listen
from shared.identity import Identity


class ServeError(ValueError):
    """The coordinator may not start like this; the message says what to change."""


def check_keys(folders: RunFolders) -> None:
    """The keys that `init` makes are there. Raises ServeError."""
    missing = [
        path
        for path in (folders.coordinator_key, folders.split_key, folders.admin_token)
        if not path.exists()
    ]
    if missing:
        raise ServeError(
            f"missing: {', '.join(map(str, missing))}; `hdee-coordinator init FOLDER` makes them"
        )


def check_addresses(
    listen: Listen, *, insecure: bool, tls_cert: Path | None, tls_key: Path | None
) -> None:
    """Tokens cross no network in the clear, unless the operator says so. Raises ServeError."""
    if (tls_cert is None) != (tls_key is None):
        raise ServeError(f"--tls-cert {tls_cert}, --tls-key {tls_key}: expected both or neither")
    for path in (tls_cert, tls_key):
        if path is not None and not path.is_file():
            raise ServeError(f"{path}: expected a PEM file, there is none")
    try:
        address = ipaddress.ip_address(listen.api_host)
    except ValueError as error:
        raise ServeError(f"listen.api_host {listen.api_host!r}: expected an IP address") from error
    if not address.is_loopback and tls_cert is None and not insecure:
        raise ServeError(
            f"listen.api_host {listen.api_host}: plain http would show tokens to everybody on the "
            "way; give --tls-cert and --tls-key, put a TLS proxy in front of a loopback address, "
            "or say --insecure on a private network"
        )


def invite_of(run: RunFile, folders: RunFolders) -> str | None:
    """What volunteers show where enrolment is by invite; None where it is open."""
    if run.enrolment == "open":
        return None
    return invite_token(Identity.load(folders.coordinator_key))


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there, as soon as a former process has left it. Raises ServeError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ServeError(f"cannot listen at {host}:{port}: {error.strerror}") from error
