"""Refuses requests of workers that speak a version of the protocol which this api does not."""

from coordinator.api.errors import ApiError, AsgiApp, Message, Receive, Send, respond
from protocol import versions
from protocol.errors import ErrorCode
from shared.version import SOFTWARE_VERSION

_HEADER = versions.HEADER.lower().encode()
_OPEN = frozenset({"/v1/run", "/v1/status"})
"""Where anybody may ask whom they talk to, whatever they speak."""


class VersionCheck:
    """ASGI middleware: what comes under another version is answered 426, and reaches nothing."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        refusal = None
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            refusal = refusal_of(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await respond(refusal.body)(scope, receive, send)


def refusal_of(scope: Message) -> ApiError | None:
    """Why a request is refused for the version that its header names; None: it is not."""
    header = next((value for name, value in scope["headers"] if name == _HEADER), None)
    try:
        version = versions.read_version(None if header is None else header.decode("latin-1"))
    except versions.NoVersion as error:
        return ApiError(ErrorCode.BAD_REQUEST, str(error))
    problem = versions.problem_of(version, software=SOFTWARE_VERSION)
    return None if problem is None else ApiError(ErrorCode.PROTOCOL_VERSION, problem)
