"""What a worker does now, as one value: what its screen, `hdee-worker status` and `why` show."""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from protocol.messages import Offer
from protocol.values import Amount, Count, Items, Number, Value
from shared.clock import now
from shared.training.runner import Event
from shared.words import size_words
from worker.manners.rules import Verdict
from worker.screen import Screen

log = logging.getLogger(__name__)

WorkerState = Literal[
    "joining", "waiting", "fetching", "training", "paused", "handing_in", "leaving", "away"
]
"""waiting: the coordinator has no work for us. away: the coordinator does not answer and there is
nothing to train meanwhile. leaving: asked to finish or to stop."""

PAUSABLE = frozenset({"waiting", "fetching", "training", "away"})
"""States whose place `paused` takes while training may not run."""

MAX_LOSSES = 60
MAX_SAID = 200


class WorkerStatus(Value):
    """One worker at one moment. Times are Unix seconds, `losses` the newest ones, oldest first.

    `reason` says why the state is what it is, for people: why nothing is trained, why this work.
    `devices` are those of a worker of several, each as `device`; the rest is of the foremost then.
    `finishing`: it leaves once what it works on is handed in. `work` is the assignment in words;
    both are None and empty while there is none, and `step` to `local_at` are about the newest.
    `durable` is what the coordinator holds, `local` what lies on this disk. `answer` is what the
    coordinator said to the last request for work, `asks_at` when it is asked again.
    `missing_senses`: what the owner's rules ask about and this machine does not tell, and why.
    """

    state: WorkerState = "joining"
    reason: str = ""
    since: Amount = 0.0
    pause_until: Amount | None = None
    finishing: bool = False
    worker: str = ""
    name: str = ""
    url: str = ""
    run: str = ""
    coordinator: str = ""
    device_name: str = ""
    assignment: str | None = None
    work: str = ""
    step: Count = 0
    num_steps: Count = 0
    tokens_per_second: Amount = 0.0
    eta_seconds: Amount | None = None
    loss: Number | None = None
    losses: Items[float] = ()
    durable_step: Count | None = None
    durable_at: Amount | None = None
    local_step: Count | None = None
    local_at: Amount | None = None
    transfer: str = ""
    lease_until: Amount | None = None
    answer: str = ""
    answer_at: Amount | None = None
    asks_at: Amount | None = None
    round_trip_seconds: Amount | None = None
    server_seconds: Amount | None = None
    accepted: Count = 0
    credit: Amount = 0.0
    device: str = ""
    devices: "Items[WorkerStatus]" = ()
    missing_senses: Items[str] = ()


class Board:
    """The newest status, what was said lately, and the screen that shows both.

    It is handed around as the screen: whoever knows something says it here. While training may not
    run, states that wait for it are shown as `paused`, and come back afterwards by themselves.
    """

    def __init__(self, screen: Screen, status: WorkerStatus, *, clock: Callable[[], float] = now):
        self.status = status
        self.said: deque[tuple[float, str]] = deque(maxlen=MAX_SAID)
        self._screen = screen
        self._clock = clock
        self._state, self._reason = status.state, status.reason
        self._verdict = Verdict(may_train=True)

    @classmethod
    def around(cls, screen: Screen) -> "Board":
        """The board that `screen` is, or a new one in front of it."""
        return screen if isinstance(screen, cls) else cls(screen, WorkerStatus())

    def update(self, **changes: Any) -> None:
        """Replaces fields of the status; a new `state` is one from now on, its reason with it."""
        if "state" in changes:
            self._state = changes.pop("state")
            self._reason = changes.pop("reason", "")
        self._reason = changes.pop("reason", self._reason)
        before = self.status
        at = self._clock()
        if changes.get("durable_step", before.durable_step) != before.durable_step:
            changes.setdefault("durable_at", at)
        held = not self._verdict.may_train and self._state in PAUSABLE
        state = "paused" if held else self._state
        if state != before.state:
            changes["since"] = at
        shown = {
            "state": state,
            "reason": self._verdict.reason if held else self._reason,
            "pause_until": self._verdict.until if held else None,
        }
        self.status = before.model_copy(update={**changes, **shown})

    def obey(self, verdict: Verdict) -> None:
        """Shows whether training may run."""
        self._verdict = verdict
        self.update()

    def take(self, offer: Offer, *, reason: str) -> None:
        """There is new work; nothing is known of it but what the offer says."""
        resume = offer.resume
        self.update(
            state="fetching",
            reason=reason,
            assignment=offer.assignment,
            work=describe_work(offer),
            step=resume.step if resume else 0,
            num_steps=offer.spec.train.num_steps,
            tokens_per_second=0.0,
            eta_seconds=None,
            loss=None,
            losses=(),
            durable_step=resume.step if resume else None,
            durable_at=None,
            local_step=None,
            local_at=None,
            asks_at=None,
        )

    def put_down(self) -> None:
        """There is no work any more."""
        self.update(assignment=None, work="", eta_seconds=None, lease_until=None)

    def say(self, text: str) -> None:
        """A line that stays."""
        log.info("said: %s", text)
        self.said.append((self._clock(), text))
        self._screen.say(text)

    def progress(self, event: Event, *, durable_step: int | None) -> None:
        """How training goes, by the trainer's newest `progress` event."""
        loss = event.get("loss")
        losses = self.status.losses if loss is None else (*self.status.losses, loss)[-MAX_LOSSES:]
        changes: dict[str, Any] = {} if self._state == "leaving" else {"state": "training"}
        if changes:
            changes["reason"] = self._reason
        self.update(
            step=event["step"],
            num_steps=event["num_steps"],
            tokens_per_second=event["tokens_per_second"],
            eta_seconds=event["eta_seconds"],
            loss=loss,
            losses=losses,
            durable_step=durable_step,
            **changes,
        )
        self._screen.progress(event, durable_step=durable_step)


def describe_work(offer: Offer) -> str:
    """`expert for python, FFN 640`."""
    spec = offer.spec
    return f"{spec.kind} for {spec.domain}, {size_words(spec.shape, spec.lora)}"
