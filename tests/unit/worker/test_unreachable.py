"""Why nobody answered: each cause by its own words, and whether trying again makes sense."""

import ssl

import httpx
import pytest

from worker.errors import CoordinatorUnreachable, NotACoordinator
from worker.unreachable import explain_answer, explain_silence

URL = "https://hdee.example.org"


def caused(error: Exception, cause: Exception) -> Exception:
    middle = OSError("in between")
    middle.__cause__ = cause
    error.__cause__ = middle
    return error


def not_trusted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (caused(httpx.ConnectError(""), not_trusted()), "SSL_CERT_FILE"),
        (caused(httpx.ConnectError(""), ssl.SSLError(1, "WRONG_VERSION_NUMBER")), "no TLS there"),
        (httpx.UnsupportedProtocol("no ftp"), "as the operator gave it"),
        (httpx.InvalidURL("no URL"), "as the operator gave it"),
        (httpx.RemoteProtocolError("illegal status line"), "does not speak HTTP"),
    ],
)
def test_what_never_becomes_a_coordinator_is_told_at_once(error, words):
    explained = explain_silence(URL, error)
    assert isinstance(explained, NotACoordinator)
    assert explained.exit_code == 3
    assert str(explained).startswith(f"{URL}: ")
    assert words in str(explained)


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout(""),
        httpx.RemoteProtocolError("Server disconnected without sending a response."),
    ],
)
def test_silence_is_worth_another_try(error):
    explained = explain_silence(URL, error)
    assert type(explained) is CoordinatorUnreachable


def answer(status: int, **headers: str) -> httpx.Response:
    request = httpx.Request("GET", f"{URL}/v1/run")
    return httpx.Response(status, headers=headers, text="<html>", request=request)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, NotACoordinator),
        (404, NotACoordinator),
        (429, CoordinatorUnreachable),
        (502, CoordinatorUnreachable),
    ],
)
def test_a_page_in_html_is_no_coordinator_unless_a_proxy_says_that_it_is_away(status, kind):
    explained = explain_answer(answer(status), "RunInfo")
    assert type(explained) is kind
    assert "is this an HDEE coordinator" in str(explained)


def test_an_address_that_leads_elsewhere_says_where():
    explained = explain_answer(answer(301, Location="https://new.example.org/v1/run"), "RunInfo")
    assert "leads to https://new.example.org/v1/run" in str(explained)
