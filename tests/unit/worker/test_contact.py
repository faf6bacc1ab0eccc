"""The first words: patience with the busy, little with nobody, and a look at the clock."""

from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorBody, ErrorCode
from protocol.messages import RunInfo
from shared.clock import now
from shared.identity import Identity
from worker.client import CoordinatorClient
from worker.contact import FIRST_CONTACT_TRIES, first_contact, pause_seconds, persist, seconds_ahead
from worker.errors import CoordinatorBusy, CoordinatorUnreachable, Refused


class Calls:
    """A call that fails with each of `errors` in turn and succeeds then; nobody waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
        self.errors = list(errors)
        self.waits: list[float] = []
        self.said: list[str] = []
        monkeypatch.setattr("worker.contact.asyncio.sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    async def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def refused(code: ErrorCode) -> Refused:
    return Refused(ErrorBody(code=code, message="because"))


async def test_a_busy_coordinator_is_asked_again_when_it_said_and_the_volunteer_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy = [CoordinatorBusy("busy", retry_after_seconds=8.0)] * 20
    calls = Calls(monkeypatch, *busy)
    assert await persist(calls, say=calls.said.append) == "answer"
    assert len(calls.waits) == 20, "that is no silence, so that tries do not run out"
    assert all(8.0 <= wait <= 10.0 for wait in calls.waits)
    assert len(set(calls.waits)) > 1, "not in step with others"
    assert all("the coordinator is busy" in line for line in calls.said)


async def test_who_is_told_to_wait_for_ever_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.contact.BUSY_SECONDS", 5.0)
    calls = Calls(monkeypatch, CoordinatorBusy("busy", retry_after_seconds=8.0))
    with pytest.raises(CoordinatorBusy):
        await persist(calls, say=calls.said.append)


async def test_silence_ends_after_some_tries_and_a_refusal_ends_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = Calls(monkeypatch, *[CoordinatorUnreachable("nobody")] * 9)
    with pytest.raises(CoordinatorUnreachable):
        await persist(calls, say=calls.said.append)
    assert len(calls.waits) == FIRST_CONTACT_TRIES - 1
    calls = Calls(monkeypatch, refused(ErrorCode.BANNED))
    with pytest.raises(Refused):
        await persist(calls, say=calls.said.append)
    assert calls.waits == []


async def test_a_challenge_that_expired_in_a_queue_is_taken_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = Calls(monkeypatch, refused(ErrorCode.UNKNOWN_NONCE))
    assert await persist(calls, say=calls.said.append) == "answer"


@given(told=st.floats(0, 1e12), attempt=st.integers(0, 100))
def test_a_pause_is_never_none_and_never_endless(told: float, attempt: int) -> None:
    wait = pause_seconds(CoordinatorUnreachable("", retry_after_seconds=told), attempt)
    assert 0.1 <= wait <= 375.0
    assert wait >= min(told, 300.0)
    assert 0.5 <= pause_seconds(CoordinatorUnreachable(""), attempt) <= 60.0


@given(
    server=st.floats(0, 1e9),
    ahead=st.floats(-5e3, 5e3),
    there=st.floats(0, 30),
    back=st.floats(0, 30),
)
def test_the_offset_of_a_clock_is_never_overstated(
    server: float, ahead: float, there: float, back: float
) -> None:
    measured = seconds_ahead(server, sent=server + ahead - there, received=server + ahead + back)
    assert abs(measured) <= abs(ahead) + 1e-6
    assert abs(measured - ahead) <= max(there, back) + 1e-6


@pytest.mark.parametrize(
    ("ahead", "words"),
    [(0.0, None), (0.9, None), (30.0, "30.0 s ahead of"), (-7200.0, "7200.0 s behind")],
)
async def test_a_clock_that_is_off_is_said_and_ends_nothing(
    tmp_path: Path, ahead: float, words: str | None
) -> None:
    identity = Identity.create(tmp_path / "worker.key")

    def answer(_: httpx.Request) -> httpx.Response:
        info = RunInfo(
            run="demo",
            coordinator=identity.peer_id,
            protocol_version=1,
            software_version="0",
            bootstrap=(),
            server_time=now() - ahead,
            heartbeat_seconds=1.0,
        )
        return httpx.Response(200, content=info.model_dump_json())

    client = CoordinatorClient("http://host", identity)
    client.http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    said: list[str] = []
    assert (await first_contact(client, say=said.append)).run == "demo"
    assert (said == []) if words is None else (words in said[0] and "NTP" in said[0])
