"""What each verb does to the agent."""

import asyncio
import contextlib
import os
from collections.abc import Callable

from protocol.admin import WhyView
from worker.agent import Agent
from worker.control.messages import (
    Answer,
    FinishRequest,
    PauseRequest,
    Request,
    ResumeRequest,
    Said,
    StopRequest,
    WhyRequest,
)
from worker.errors import CoordinatorUnreachable, Refused
from worker.screen import describe_until

VERDICT_SECONDS = 3.0
"""An answer to `pause` and `resume` waits so long for its effect, to show it."""

ACCOUNT_SECONDS = 10.0
MAX_SHOWN = 50


class AgentControls:
    """The controls of one agent; `end` ends the process at once."""

    def __init__(self, agent: Agent, *, end: Callable[[], None]) -> None:
        self._agent = agent
        self._end = end

    async def answer(self, request: Request) -> Answer:
        """Does what is asked, and says how things stand then."""
        board = self._agent.board
        account, why_not, message = None, "", ""
        if isinstance(request, WhyRequest):
            account, why_not = await self._why()
        else:
            message = await self._do(request)
        return Answer(
            message=message,
            status=board.status,
            pid=os.getpid(),
            said=tuple(Said(at=at, text=text) for at, text in [*board.said][-MAX_SHOWN:]),
            account=account,
            why_not=why_not,
        )

    def after(self, request: Request) -> None:
        """Called once the answer is sent."""
        if isinstance(request, StopRequest) and request.at_once:
            self._end()

    async def _do(self, request: Request) -> str:
        agent = self._agent
        if isinstance(request, PauseRequest):
            agent.manners.pause(request.seconds)
            await self._see_verdict(may_train=False)
            until = agent.manners.verdict.until
            agent.board.say("paused by its owner" + describe_until(until))
            return f"paused{describe_until(until)}: what was trained is kept"
        if isinstance(request, ResumeRequest):
            agent.manners.resume()
            await self._see_verdict(may_train=True)
            verdict = agent.manners.verdict
            agent.board.say("the owner's pause is over")
            if not verdict.may_train:
                return f"the pause is over, and still nothing is trained: {verdict.reason}"
            return "training goes on"
        if isinstance(request, FinishRequest):
            return agent.finish()
        if isinstance(request, StopRequest):
            if request.at_once:
                return "ending at once: the next start goes on at the last local checkpoint"
            agent.board.say("stopping: finishing the step and writing a checkpoint")
            agent.stop()
            return "stopping: it finishes the step, writes a checkpoint and gives the lease back"
        return ""

    async def _why(self) -> tuple[WhyView | None, str]:
        """What the coordinator thinks, or why that is not known."""
        try:
            async with asyncio.timeout(ACCOUNT_SECONDS):
                account = await self._agent.account()
        except TimeoutError:
            return None, f"the coordinator did not answer in {ACCOUNT_SECONDS:.0f} s"
        except (CoordinatorUnreachable, Refused) as error:
            return None, str(error)
        return account, "" if account is not None else "this worker has not joined yet"

    async def _see_verdict(self, *, may_train: bool) -> None:
        manners = self._agent.manners
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(VERDICT_SECONDS):
                while manners.verdict.may_train != may_train:
                    await manners.changed(manners.verdict)
