"""Typed calls to the coordinator of a run, with the admin token that `init` wrote."""

import ipaddress
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from coordinator.cli.errors import CannotReach, CoordinatorRefused, VerbError, WrongUsage
from coordinator.folders import RunFolders
from coordinator.runfile import RunFile, load_run_file
from coordinator.serving import check_keys
from protocol import PROTOCOL_VERSION
from protocol.admin import Order
from protocol.errors import ErrorBody, ErrorCode
from protocol.messages import RunInfo
from protocol.versions import HEADER
from shared.identity import Identity

TIMEOUT_SECONDS = 30.0
MAX_REASON = 500

Answer = TypeVar("Answer", bound=BaseModel)


class Remote:
    """The coordinator of the run that `run_file` describes, at its own address or at `url`.

    Use as a context manager; entering it asks whether that run is served there. Raises RunFileError
    and ServeError for a run that is not there, VerbError for all else.
    """

    def __init__(self, run_file: Path, url: str | None) -> None:
        self.run = load_run_file(run_file)
        folders = RunFolders(self.run.folder)
        check_keys(folders)
        self.url = address_of(self.run, url)
        self._expected = Identity.load(folders.coordinator_key).peer_id
        self._admin_token = folders.admin_token
        try:
            host = httpx.URL(self.url).host
            self._http = httpx.Client(
                base_url=self.url,
                timeout=TIMEOUT_SECONDS,
                headers={
                    "Authorization": f"Bearer {folders.admin_token.read_text().strip()}",
                    HEADER: str(PROTOCOL_VERSION),
                },
                # A proxy of the environment cannot know this machine's own ports.
                trust_env=not is_loopback(host),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise WrongUsage(f"--url {self.url}: not a URL: {error}") from error

    def __enter__(self) -> "Remote":
        # The token goes to nobody who does not claim to be this run: two runs may share a port.
        info = self._call(RunInfo, "GET", "/v1/run", headers={"Authorization": ""})
        if (info.run, info.coordinator) != (self.run.run.name, self._expected):
            self._http.close()
            raise CannotReach(
                f"{self.url} serves run {info.run!r} of coordinator {info.coordinator}, expected "
                f"{self.run.run.name!r} of {self._expected}: name another --url or run file"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, kind: type[Answer], path: str, params: Mapping[str, Any]) -> Answer:
        """One value."""
        return self._call(kind, "GET", path, params=dict(params))

    def order(self, kind: type[Answer], path: str, *, reason: str) -> Answer:
        """A decision of the operator's, and how things stand after it."""
        if len(reason) > MAX_REASON:
            raise WrongUsage(f"--reason of {len(reason)} characters: expected at most {MAX_REASON}")
        body = Order(reason=reason).model_dump()
        return self._call(kind, "POST", f"/v1/admin/{path}", json=body)

    def all_of(
        self, kind: type[Answer], path: str, *, key: str, params: Mapping[str, Any]
    ) -> Iterator[Answer]:
        """Every value of a list that comes in pages, each after the `key` of the last before."""
        page = TypeAdapter(list[kind])  # type: ignore[valid-type]
        after = ""
        while True:
            found = self._send(page.validate_json, "GET", path, params={**params, "after": after})
            if not found:
                return
            yield from found
            after = getattr(found[-1], key)

    def _call(self, kind: type[Answer], method: str, path: str, **request: Any) -> Answer:
        return self._send(kind.model_validate_json, method, path, **request)

    def _send(self, parse: "Parse[Parsed]", method: str, path: str, **request: Any) -> "Parsed":
        try:
            response = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise CannotReach(
                f"no coordinator answers at {self.url}: {error or type(error).__name__}; is it "
                "served (hdee-coordinator serve)? With TLS or behind a proxy name its --url"
            ) from error
        if not response.is_success:
            raise self._refusal(response)
        try:
            return parse(response.content)
        except ValidationError as error:
            raise CannotReach(
                f"{self.url}{path} does not answer as a coordinator of this version does: "
                f"{error.errors()[0]['msg']}"
            ) from error

    def _refusal(self, response: httpx.Response) -> VerbError:
        try:
            body = ErrorBody.model_validate_json(response.content)
        except ValidationError:
            return CannotReach(f"{response.url}: {response.status_code}, not from a coordinator")
        if body.code is ErrorCode.INTERNAL:
            return VerbError(f"{body.message}; the cause is in state/logs/api.log")
        if body.code is ErrorCode.UNKNOWN_TOKEN:
            return CoordinatorRefused(
                f"{self.url} does not know the token in {self._admin_token}: it was served with "
                "another; serve it again, or name the run file that it is served with"
            )
        if body.retry_after_seconds is not None:
            wait = f"; try again in {body.retry_after_seconds:.0f} s"
            return CoordinatorRefused(body.message + wait)
        return CoordinatorRefused(body.message)


Parsed = TypeVar("Parsed", covariant=True)


class Parse(Protocol[Parsed]):
    """From the bytes of an answer to its value."""

    def __call__(self, data: bytes, /) -> Parsed: ...


def address_of(run: RunFile, url: str | None) -> str:
    """Where the run is served. Raises WrongUsage for a URL to which the token must not go.

    Without `url`: at its own api port, over plain http. Plain http is for this machine, and for
    addresses at which the run file itself lets it listen.
    """
    listen = run.listen
    if url is None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.api_host, listen.api_host)
        return f"http://{f'[{host}]' if ':' in host else host}:{listen.api_port}"
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise WrongUsage(f"--url {url}: not a URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise WrongUsage(f"--url {url}: expected http:// or https:// and a host")
    own = {listen.api_host, listen.public_host}
    if parsed.scheme == "http" and not is_loopback(parsed.host) and parsed.host not in own:
        raise WrongUsage(
            f"--url {url}: plain http would show the admin token to everybody on the way; use "
            "https, or a tunnel to the coordinator's own machine"
        )
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
