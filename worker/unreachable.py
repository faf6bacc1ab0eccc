"""Why no coordinator answered, in words that say what to do. Pure."""

import ssl

import httpx

from protocol import PROTOCOL_VERSION
from worker.errors import CoordinatorUnreachable, NotACoordinator

SHOWN_ADDRESS = "https://hdee.example.org"


def explain_silence(url: str, error: httpx.HTTPError | httpx.InvalidURL) -> CoordinatorUnreachable:
    """What a call to `url` failed of before there was an answer.

    NotACoordinator where trying again would change nothing.
    """
    tls, said = _cause(error, ssl.SSLError), f"{type(error).__name__} {error}".rstrip()
    if isinstance(tls, ssl.SSLCertVerificationError):
        return NotACoordinator(
            f"{url}: its certificate is not trusted ({tls.verify_message}); ask the operator for "
            "the address; where the operator signs certificates, set the environment variable "
            "SSL_CERT_FILE to the authority's certificate"
        )
    if tls is not None:
        return NotACoordinator(
            f"{url}: no TLS there ({tls}); is its address http:// or another port?"
        )
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return NotACoordinator(
            f"{url}: {said}; expected an address such as {SHOWN_ADDRESS}, as the operator gave it"
        )
    if isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in str(error):
        return NotACoordinator(
            f"{url}: what answers there does not speak HTTP ({said}); is it https://, or another "
            "port?"
        )
    words = f"{url}: {said}"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        words += "; compare the address with the operator's: is it served, is a firewall between?"
    return CoordinatorUnreachable(words)


def explain_answer(response: httpx.Response, expected: str) -> CoordinatorUnreachable:
    """What is wrong with an answer that is no `expected`.

    A proxy answers with a 5xx for a coordinator that is away, and with 429 for itself: that passes.
    """
    where = response.request.url
    if response.is_redirect:
        target = response.headers.get("Location", "nowhere")[:200]
        return NotACoordinator(f"{where}: leads to {target}; give the address that it leads to")
    words = (
        f"{where}: HTTP {response.status_code} with a body that is no {expected}; is this an HDEE "
        f"coordinator of protocol {PROTOCOL_VERSION}? Expected an address such as {SHOWN_ADDRESS}, "
        "without a path"
    )
    passes = response.is_server_error or response.status_code == httpx.codes.TOO_MANY_REQUESTS
    return CoordinatorUnreachable(words) if passes else NotACoordinator(words)


def explain_wrong_place(url: str) -> str:
    """HDEE answers at `url`, but not the part of a coordinator that workers talk to."""
    return (
        f"{url}: HDEE answers, but not to workers: is a path too much, or is it the port for "
        f"blobs? Expected an address such as {SHOWN_ADDRESS}, as the operator gave it"
    )


def _cause(error: BaseException, kind: type[ssl.SSLError]) -> ssl.SSLError | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, kind):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
