"""Settings of the api role."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ApiSettings:
    """What the api role is told. Durations are seconds.

    `url_secret` is shared with the network role, which checks the URLs that the api signs.
    `trust` names the workers that may train a seed, by peer id, or is "all".
    """

    run: str
    heartbeat_seconds: float
    checkpoint_seconds: float
    enrolment: Literal["open", "invite"]
    trust: Literal["all"] | Collection[str]
    url_secret: bytes
    token_seconds: float = 3600.0
    certificate_seconds: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("heartbeat_seconds", "checkpoint_seconds", "token_seconds"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name} {value}: expected more than 0")
        if len(self.url_secret) < 16:
            raise ValueError(f"url_secret of {len(self.url_secret)} bytes: expected at least 16")

    @property
    def trusted(self) -> Collection[str] | None:
        """Who may train a seed; None: everybody."""
        return None if self.trust == "all" else self.trust
