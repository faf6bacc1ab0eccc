"""What the operator asks of a coordinator and is told: the routes under /v1/admin, and the account.

Times in an account are seconds from now.
"""

from typing import Any, Literal

from protocol.assignments import State
from protocol.ids import AssignmentId, Digest, RunId, WorkerId
from protocol.messages import Label, Text
from protocol.values import Amount, Count, Items, Number, Positive, Value
from protocol.views import WorkerState

WorkerVerb = Literal["ban", "unban", "drain", "undrain"]
AssignmentVerb = Literal["retry", "cancel", "fail"]
RunVerb = Literal["pause", "resume"]


class Order(Value):
    """Body of every POST under /v1/admin. The reason stands in the ledger's entry."""

    reason: Text = ""


class WorkerMarks(Value):
    """How the operator wants a worker to be treated."""

    worker: WorkerId
    banned: bool
    draining: bool


class AssignmentStanding(Value):
    """Where an assignment stands. `also` names its backup, which ended with it."""

    assignment: AssignmentId
    state: State
    also: Items[AssignmentId] = ()


class RunPause(Value):
    """Whether the run makes new offers."""

    run: RunId
    paused: bool


class RowView(Value):
    """What an entry wrote into one row of a state table: a `new` row, or columns of one by key."""

    table: Label
    new: bool
    values: dict[str, Any]


class EntryView(Value):
    """One entry of the ledger, as GET /v1/admin/entries shows it; `at` in seconds since 1970."""

    number: Positive
    at: Amount
    kind: Label
    facts: dict[str, Any]
    rows: Items[RowView]
    previous: Digest
    digest: Digest


class ConsideredView(Value):
    """What the scheduler thinks of one open assignment for one worker, if it asked now.

    It does not fit: `requirement` is the first that fails, by `needed` and `held` in `unit` where
    it is a quantity, and in `words`. It fits: it would be done in `finish_seconds`, the target for
    all work is in `target_seconds`, and past that `sooner` names who is expected to finish it
    before. `given`: it would be offered now.
    """

    assignment: AssignmentId
    description: Text
    fits: bool
    given: bool
    words: Text
    requirement: Label | None = None
    needed: Number | None = None
    held: Number | None = None
    unit: Label = ""
    finish_seconds: Number | None = None
    target_seconds: Number | None = None
    sooner: WorkerId | None = None
    sooner_seconds: Number | None = None


class RateView(Value):
    """A worker's rate limit: calls that it may make at once now, and how fast they come back."""

    calls_left: Count
    calls_a_second: Amount
    retry_after_seconds: Amount


class WhyView(Value):
    """GET /v1/workers/{id}/why: why a worker gets what it gets.

    `blockers` keep it from all work; `answer` is what it would be told, were there none, if it
    asked now. It was first told `waited_seconds` ago to leave open work to others, and waits so at
    most for the longer of `patience_seconds` and half of the time that it would need itself.
    `considered` is a page of the open assignments, by id; the next one begins after `next_after`,
    None: it was the last.
    """

    worker: WorkerId
    name: str
    state: WorkerState
    age_seconds: Amount
    holds: AssignmentId | None
    uncollected: Count
    blockers: Items[Text]
    answer: Text
    expected_flops_per_second: Amount
    waited_seconds: Amount | None
    patience_seconds: Amount
    rate: RateView
    considered: Items[ConsideredView]
    next_after: AssignmentId | None
