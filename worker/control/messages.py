"""What verbs ask the worker that runs, and what it answers: one JSON line each.

Both ends are of one installation as a rule. Where they are not, the version tells, and the answer
says what to do.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from protocol.admin import WhyView
from protocol.values import Amount, Count, Items, Value
from worker.status import WorkerStatus

Version = Literal[1]
CONTROL_VERSION: Version = 1

MAX_REQUEST_BYTES = 4096
MAX_ANSWER_BYTES = 4 * 2**20
MAX_PAUSE_SECONDS = 366 * 86_400.0


class StatusRequest(Value):
    """What does the worker do?"""

    version: Version = CONTROL_VERSION
    verb: Literal["status"] = "status"


class WhyRequest(Value):
    """The status, and what the coordinator's scheduler thinks of this worker now."""

    version: Version = CONTROL_VERSION
    verb: Literal["why"] = "why"


class PauseRequest(Value):
    """No training for so long; None: until it is resumed."""

    version: Version = CONTROL_VERSION
    verb: Literal["pause"] = "pause"
    seconds: Annotated[float, Field(gt=0, le=MAX_PAUSE_SECONDS)] | None = None


class ResumeRequest(Value):
    """The owner's pause is over."""

    version: Version = CONTROL_VERSION
    verb: Literal["resume"] = "resume"


class FinishRequest(Value):
    """Hand in what is worked on, then leave."""

    version: Version = CONTROL_VERSION
    verb: Literal["finish"] = "finish"


class StopRequest(Value):
    """Checkpoint, give the lease back and leave; `at_once`: end as if killed."""

    version: Version = CONTROL_VERSION
    verb: Literal["stop"] = "stop"
    at_once: bool = False


Request = StatusRequest | WhyRequest | PauseRequest | ResumeRequest | FinishRequest | StopRequest

_VERBED: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="verb")])


class Said(Value):
    """A line that the worker said, at a Unix time."""

    at: Amount
    text: str


class Answer(Value):
    """What was done, in words, and how things stand then. `account` answers a `why` alone.

    `why_not`: what kept the coordinator from giving its account.
    """

    version: Version = CONTROL_VERSION
    is_refusal: Literal[False] = False
    message: str = ""
    status: WorkerStatus
    pid: Count
    said: Items[Said] = ()
    account: WhyView | None = None
    why_not: str = ""


class Refusal(Value):
    """The request was not understood, or came at a bad moment; nothing was done."""

    version: Version = CONTROL_VERSION
    is_refusal: Literal[True] = True
    code: Literal["bad_request", "version", "too_long", "too_slow", "busy", "failed"]
    message: str


Reply = Answer | Refusal

_REPLY: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="is_refusal")])
_ANY: TypeAdapter[dict[str, object]] = TypeAdapter(dict[str, object])


class BadMessage(Exception):
    """A line that is no message of ours. `refusal` is what to answer."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def encode(message: Request | Reply) -> bytes:
    """The line of a message, with its end."""
    return message.model_dump_json().encode() + b"\n"


def read_request(line: bytes) -> Request:
    """The request in a line. Raises BadMessage."""
    _check_version(line, "the worker that runs", "the verb")
    try:
        return _VERBED.validate_json(line)
    except ValidationError as error:
        raise BadMessage(Refusal(code="bad_request", message=_words(error))) from error


def read_reply(line: bytes) -> Reply:
    """The reply in a line. Raises BadMessage."""
    _check_version(line, "this hdee-worker", "the worker that runs")
    try:
        return _REPLY.validate_json(line)
    except ValidationError as error:
        raise BadMessage(Refusal(code="bad_request", message=_words(error))) from error


def _check_version(line: bytes, ours: str, theirs: str) -> None:
    try:
        version = _ANY.validate_json(line).get("version")
    except ValidationError as error:
        raise BadMessage(Refusal(code="bad_request", message=_words(error))) from error
    if version != CONTROL_VERSION:
        raise BadMessage(
            Refusal(
                code="version",
                message=f"{theirs} speaks version {version!r:.20} of control messages, {ours} "
                f"{CONTROL_VERSION}: stop the worker with Ctrl-C or SIGTERM and start it again",
            )
        )


def _words(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
