"""What is refused before a coordinator listens."""

from pathlib import Path

import pytest

from coordinator.folders import RunFolders
from coordinator.init import init_folder
from coordinator.sections import Listen
from coordinator.serving import ServeError, check_addresses, check_keys


def test_a_run_with_its_keys_may_start_and_one_without_hears_which_are_missing(
    tmp_path: Path,
) -> None:
    init_folder(tmp_path)
    folders = RunFolders(tmp_path)
    check_keys(folders)
    folders.split_key.unlink()
    folders.admin_token.unlink()
    with pytest.raises(ServeError, match="hdee-coordinator init") as error:
        check_keys(folders)
    assert str(folders.split_key) in str(error.value)
    assert str(folders.admin_token) in str(error.value)
    assert str(folders.coordinator_key) not in str(error.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_needs_no_certificate(host: str) -> None:
    check_addresses(Listen(api_host=host), insecure=False, tls_cert=None, tls_key=None)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::"])
def test_plain_http_to_others_must_be_asked_for(host: str, tmp_path: Path) -> None:
    listen = Listen(api_host=host)
    with pytest.raises(ServeError, match="plain http would show tokens"):
        check_addresses(listen, insecure=False, tls_cert=None, tls_key=None)
    check_addresses(listen, insecure=True, tls_cert=None, tls_key=None)
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.touch()
    key.touch()
    check_addresses(listen, insecure=False, tls_cert=certificate, tls_key=key)


def test_half_a_certificate_is_refused_and_so_is_one_that_is_not_there(tmp_path: Path) -> None:
    there, missing = tmp_path / "cert.pem", tmp_path / "key.pem"
    there.touch()
    for certificate, key in ((there, None), (None, there)):
        with pytest.raises(ServeError, match="expected both or neither"):
            check_addresses(Listen(), insecure=False, tls_cert=certificate, tls_key=key)
    with pytest.raises(ServeError, match=r"key\.pem: expected a PEM file, there is none"):
        check_addresses(Listen(), insecure=False, tls_cert=there, tls_key=missing)


def test_an_address_is_not_looked_up() -> None:
    with pytest.raises(ServeError, match=r"api_host 'localhost': expected an IP address"):
        check_addresses(Listen(api_host="localhost"), insecure=True, tls_cert=None, tls_key=None)
