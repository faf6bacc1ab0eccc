"""States of an assignment, and the only transitions between them."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field


class AssignmentState(StrEnum):
    """Where a piece of work stands."""

    OPEN = "open"
    OFFERED = "offered"
    RUNNING = "running"
    SUBMITTED = "submitted"
    ACCEPTED = "accepted"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AssignmentEvent(StrEnum):
    """What happens to an assignment."""

    OFFER = "offer"
    ACKNOWLEDGE = "acknowledge"
    RENEW = "renew"
    SUBMIT = "submit"
    ACCEPT = "accept"
    REJECT = "reject"
    RELEASE = "release"
    EXPIRE = "expire"
    FAIL = "fail"
    CANCEL = "cancel"
    RETRY = "retry"


State = Annotated[AssignmentState, Field(strict=False)]

LIVE = frozenset({AssignmentState.OFFERED, AssignmentState.RUNNING})
"""States in which a worker holds a lease."""

FINAL = frozenset({AssignmentState.ACCEPTED, AssignmentState.FAILED, AssignmentState.CANCELLED})

_S, _E = AssignmentState, AssignmentEvent

TRANSITIONS: dict[tuple[AssignmentState, AssignmentEvent], AssignmentState] = {
    (_S.OPEN, _E.OFFER): _S.OFFERED,
    (_S.OFFERED, _E.ACKNOWLEDGE): _S.RUNNING,
    (_S.OFFERED, _E.RELEASE): _S.OPEN,
    (_S.OFFERED, _E.EXPIRE): _S.OPEN,
    (_S.RUNNING, _E.RENEW): _S.RUNNING,
    (_S.RUNNING, _E.SUBMIT): _S.SUBMITTED,
    (_S.RUNNING, _E.RELEASE): _S.OPEN,
    (_S.RUNNING, _E.EXPIRE): _S.OPEN,
    (_S.SUBMITTED, _E.ACCEPT): _S.ACCEPTED,
    (_S.SUBMITTED, _E.REJECT): _S.OPEN,
    (_S.SUBMITTED, _E.EXPIRE): _S.OPEN,
    **{
        (state, event): target
        for state in _S
        if state not in FINAL
        for event, target in ((_E.FAIL, _S.FAILED), (_E.CANCEL, _S.CANCELLED))
    },
    **{(state, _E.RETRY): _S.OPEN for state in (_S.OPEN, _S.FAILED, _S.CANCELLED)},
}
"""(state, event) to the next state; a pair that is missing here is refused."""
