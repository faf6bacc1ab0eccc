"""Settings of the api role."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ApiSettings:
    """What the api role is told. Durations are seconds.

    `url_secret` is shared with the network role, which checks the URLs that the api signs.
    `token_key` makes the tokens and challenges that only an api of this run recognises.
    `admin_token` opens the operator's routes; None: nobody may use them. `trust` names the workers
    that may train a seed, by peer id, or is "all". `max_pending` requests for work and
    registrations wait at once; `max_attempts` equal failures of proven workers fail an assignment.
    """

    run: str
    heartbeat_seconds: float
    checkpoint_seconds: float
    enrolment: Literal["open", "invite"]
    trust: Literal["all"] | Collection[str]
    url_secret: bytes
    token_key: bytes
    admin_token: str | None = None
    max_pending: int = 64
    max_attempts: int = 3
    token_seconds: float = 3600.0
    certificate_seconds: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("heartbeat_seconds", "checkpoint_seconds", "token_seconds"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name} {value}: expected more than 0")
        for name in ("max_pending", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected at least 1")
        for name in ("url_secret", "token_key"):
            length = len(getattr(self, name))
            if length < 16:
                raise ValueError(f"{name} of {length} bytes: expected at least 16")

    @property
    def trusted(self) -> Collection[str] | None:
        """Who may train a seed; None: everybody."""
        return None if self.trust == "all" else self.trust
