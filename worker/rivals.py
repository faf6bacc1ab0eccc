"""Another process with our key: noticed by the tokens that it takes from us."""

from worker.errors import KeyInUse, Refused

MAX_LOST_TOKENS = 3
LOST_TOKEN_SECONDS = 600.0
"""Losing so many tokens to another registration in this time means that another process has our
key: a coordinator that forgot us takes one."""


class LostTokens:
    """The tokens that a worker lost lately, each with the time of the loss."""

    def __init__(self) -> None:
        self._lost: dict[str, float] = {}

    def note(self, token: str, refusal: Refused, *, at: float, worker: str, folder: object) -> None:
        """A token was lost at a time in seconds. Several calls may lose the same: that is one loss.

        Raises KeyInUse where registering again would only take the place back once more.
        """
        recent = {one: lost for one, lost in self._lost.items() if at - lost < LOST_TOKEN_SECONDS}
        self._lost = {token: at, **recent}
        if len(self._lost) >= MAX_LOST_TOKENS:
            words = (
                f"another hdee-worker registers as {worker}, too: stop the other one; if its "
                f"folder is a copy of {folder}, delete worker.key in one of the two, and that one "
                "becomes a worker of its own"
            )
            raise KeyInUse(refusal.body.model_copy(update={"message": words}))
