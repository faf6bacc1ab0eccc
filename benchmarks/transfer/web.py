"""The HTTP process: uvicorn with a plain file, and with the network role's blob app.

The blob app stands behind signed URLs that the api hands out by a redirect; so it is here.
"""

import asyncio
import ipaddress
import os
import secrets
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fastapi import FastAPI
from fastapi.responses import FileResponse, RedirectResponse, Response

from benchmarks.transfer.orders import obey, run, say, settings
from coordinator.network.blob_app import create_blob_app
from coordinator.urls import sign_url
from protocol.ids import Digest
from shared.blobs import BlobStore
from shared.clock import now

URL_SECONDS = 60
QUIET: dict[str, Any] = {"log_config": None, "log_level": "warning", "lifespan": "off"}


def create_app(store: BlobStore, path: Path, base_url: str) -> FastAPI:
    """`/file` is the plain file; `/v1/blobs/DIGEST` what the api answers for a blob."""
    secret = secrets.token_bytes(32)
    app = create_blob_app(
        store=store,
        secret=secret,
        may_read=lambda _digest, _peer: True,
        may_upload=lambda _digest: None,
        on_complete=lambda _ref, _peer: None,
        now=now,
    )

    @app.get("/file", response_model=None)
    async def file() -> Response:
        return FileResponse(path, media_type="application/octet-stream")

    @app.get("/v1/blobs/{digest}", response_model=None)
    async def signed(digest: Digest) -> Response:
        url = sign_url(
            base_url,
            digest=digest,
            purpose="get",
            peer="benchmark",
            expires_at=int(now()) + URL_SECONDS,
            secret=secret,
        )
        return RedirectResponse(url, status_code=307)

    return app


def self_signed(at: float) -> bytes:
    """A key and a certificate of 127.0.0.1 for an hour from `at`, as PEM."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    begin = datetime.fromtimestamp(at, tz=UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=key.public_key())
        .serial_number(1)
        .not_valid_before(begin - timedelta(minutes=1))
        .not_valid_after(begin + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, None)
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return secret + certificate.public_bytes(Encoding.PEM)


async def main() -> None:
    """Serves until standard input ends, on a port of its own choice."""
    given = settings()
    path = Path(given.file)
    store = BlobStore(Path(given.folder) / given.name)
    await asyncio.to_thread(store.add_file, path)
    certificate = Path(given.folder) / "tls.pem"
    certificate.write_bytes(self_signed(now()))
    with (
        socket.create_server(("127.0.0.1", 0)) as plain,
        socket.create_server(("127.0.0.1", 0)) as secure,
    ):
        url = f"http://127.0.0.1:{plain.getsockname()[1]}"
        app = create_app(store, path, url)
        servers = [
            uvicorn.Server(uvicorn.Config(app, **QUIET)),
            uvicorn.Server(uvicorn.Config(app, **QUIET, ssl_certfile=certificate)),
        ]
        serving = [
            asyncio.create_task(server.serve([listener]))
            for server, listener in zip(servers, (plain, secure), strict=True)
        ]
        secure_url = f"https://127.0.0.1:{secure.getsockname()[1]}"
        say(
            {
                "python": os.getpid(),
                "url": url,
                "secure_url": secure_url,
                "certificate": str(certificate),
            }
        )
        await obey({})
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*serving)


if __name__ == "__main__":
    run(main(), settings().loop)
