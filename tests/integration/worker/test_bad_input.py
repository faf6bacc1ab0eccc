"""What goes wrong for a newcomer, by the real command: one line says what, and how to mend it."""

import contextlib
import datetime
import http.server
import ipaddress
import os
import resource
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from coordinator.ledger import queries
from shared.clock import now
from worker.folder import WorkerFolder

pytestmark = pytest.mark.timeout(300)

PROGRAM = Path(sys.executable).with_name("hdee-worker")
NOWHERE = "http://127.0.0.1:1"


def join(*arguments: object, most_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """`hdee-worker join ARGUMENTS --yes`; no file of its may grow beyond `most_bytes`."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return subprocess.run(
        [str(PROGRAM), "join", *map(str, arguments), "--yes"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        preexec_fn=None if most_bytes is None else limit,
    )


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what is wrong; there is nothing else of Python's in it."""
    assert "Traceback" not in done.stderr + done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("hdee-worker: ")
    return last


@contextlib.contextmanager
def served(context: ssl.SSLContext | None = None, *, status: int = 404) -> Iterator[int]:
    """The port of a web server that is no coordinator, with TLS if there is a context."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<html>welcome</html>"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Not here."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    """What a server shows who made its certificate itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    today = datetime.datetime.fromtimestamp(now(), tz=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def test_a_folder_that_cannot_be_written_is_named_with_the_flag_that_mends_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "worker", Path("/proc/hdee-worker")]
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        places.append(tmp_path / "closed" / "worker")
    for place in places:
        done = join(NOWHERE, "--folder", place)
        assert done.returncode == 1
        assert f"folder {place}: " in complaint(done)
        assert "--folder" in complaint(done)


def test_a_disk_that_takes_no_more_is_told(tmp_path: Path) -> None:
    done = join(NOWHERE, "--folder", tmp_path / "worker", most_bytes=16)
    assert done.returncode == 1
    assert str(tmp_path / "worker") in complaint(done)
    assert "cannot be written" in complaint(done) or "make room" in complaint(done)


def test_a_page_that_is_no_coordinator_is_told_at_once(tmp_path: Path) -> None:
    with served() as port:
        done = join(f"http://127.0.0.1:{port}", "--folder", tmp_path / "worker")
    assert done.returncode == 3
    assert "is this an HDEE coordinator" in complaint(done)


def test_an_address_with_a_path_is_told(roles: Any, tmp_path: Path) -> None:
    done = join(f"{roles.url}/v1/run", "--folder", tmp_path / "worker")
    assert done.returncode in (3, 4)
    assert "/v1/run" in complaint(done)


def test_what_does_not_speak_http_is_told(roles: Any, tmp_path: Path) -> None:
    with roles.ledger.read() as connection:
        maddr = queries.get_run(connection).maddrs[0]
    port = maddr.split("/")[4]
    done = join(f"http://127.0.0.1:{port}", "--folder", tmp_path / "worker")
    assert done.returncode == 3
    assert f"http://127.0.0.1:{port}: " in complaint(done)


def test_a_certificate_that_nobody_vouches_for_is_told_with_the_way_to_trust_it(
    self_signed: ssl.SSLContext, tmp_path: Path
) -> None:
    with served(self_signed) as port:
        done = join(f"https://127.0.0.1:{port}", "--folder", tmp_path / "worker")
    assert done.returncode == 3
    assert "its certificate is not trusted" in complaint(done)
    assert "SSL_CERT_FILE" in complaint(done)


def test_https_where_there_is_none_is_told(tmp_path: Path) -> None:
    with served() as port:
        done = join(f"https://127.0.0.1:{port}", "--folder", tmp_path / "worker")
    assert done.returncode == 3
    assert "no TLS there" in complaint(done)


@pytest.mark.parametrize("damage", ["no key", "exposed"])
def test_a_key_that_cannot_be_used_is_told_with_what_to_do(damage: str, tmp_path: Path) -> None:
    folder = WorkerFolder(tmp_path / "worker")
    folder.close()
    key = tmp_path / "worker" / "worker.key"
    if damage == "exposed":
        key.chmod(0o644)
    else:
        key.write_bytes(b"no key")
    done = join(NOWHERE, "--folder", tmp_path / "worker")
    assert done.returncode == 1
    assert str(key) in complaint(done)
    expected = "chmod 600" if damage == "exposed" else "move it away"
    assert expected in complaint(done)


@pytest.mark.parametrize("device", ["tpu", "cuda"])
def test_a_device_that_is_not_there_is_told_with_those_that_are(
    roles: Any, device: str, tmp_path: Path
) -> None:
    flags = ("--folder", tmp_path / "worker", "--device", device)
    done = join(roles.url, *flags)
    if device == "cuda" and done.returncode == 0:
        pytest.skip("this machine has CUDA")
    assert done.returncode == 1
    assert f"device '{device}': " in complaint(done)
    assert "cpu" in complaint(done)


def test_a_key_that_the_operator_banned_is_told_by_whom(roles: Any, tmp_path: Path) -> None:
    folder = WorkerFolder(tmp_path / "worker")
    folder.close()
    flags = ("--folder", folder.root, "--device", "cpu", "--http-only")
    assert join(roles.url, *flags, "--for", "1s").returncode == 0
    with roles.ledger.begin() as connection:
        queries.treat_worker(connection, folder.identity.peer_id, "ban", reason="a test", now=now())
    done = join(roles.url, *flags)
    assert done.returncode == 4
    assert "banned by the operator" in complaint(done)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("join", NOWHERE, "--yes"), 3),
        (("join", NOWHERE, "--dry-run"), 3),
        (("join", NOWHERE), 2),
        (("can-join", NOWHERE), 3),
        (("check", NOWHERE, "--http-only"), 3),
    ],
)
def test_a_mistyped_address_leaves_nothing_behind(
    tmp_path: Path, words: tuple[str, ...], code: int
) -> None:
    folder = tmp_path / "share" / "anna"
    done = subprocess.run(
        [str(PROGRAM), *words, "--folder", str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == []
