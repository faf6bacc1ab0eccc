"""The status of a worker with several devices."""

import pytest

from worker.boards import WholeBoard
from worker.manners.rules import Verdict
from worker.panel import render, rows
from worker.status import WorkerStatus


class Said:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, event, *, durable_step) -> None:
        raise AssertionError(f"two trainings would be told as one: {event} {durable_step}")


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def whole(said, clock) -> WholeBoard:
    status = WorkerStatus(name="anna", url="http://127.0.0.1:1")
    return WholeBoard(said, status, ("cuda:0", "cpu"), clock=clock)


def event(step: int) -> dict:
    return {
        "event": "progress",
        "step": step,
        "num_steps": 100,
        "tokens_per_second": 64.0,
        "eta_seconds": 65.0,
        "loss": 3.0,
    }


def test_the_worker_is_what_the_foremost_of_its_devices_is(whole):
    gpu, cpu = whole.parts
    assert whole.status.state == "joining"
    gpu.update(state="waiting", reason="nothing is open")
    assert (whole.status.state, whole.status.reason) == ("waiting", "nothing is open")
    cpu.update(state="training", reason="you are the fastest", assignment="a" * 17, work="a seed")
    status = whole.status
    assert (status.state, status.reason, status.work) == (
        "training",
        "you are the fastest",
        "a seed",
    )
    assert [one.device for one in status.devices] == ["cuda:0", "cpu"]
    assert [one.state for one in status.devices] == ["waiting", "training"]
    assert status.name == "anna"
    cpu.put_down()
    cpu.update(state="away")
    assert whole.status.assignment is None


def test_what_is_true_of_the_worker_stays_whatever_its_devices_do(whole):
    whole.update(credit=5.0, accepted=2, transfer="fetching", finishing=True)
    whole.parts[0].update(state="training")
    status = whole.status
    assert (status.credit, status.accepted, status.transfer, status.finishing) == (
        5.0,
        2,
        "fetching",
        True,
    )
    assert all(one.credit == 0.0 for one in status.devices)


def test_a_state_of_the_whole_and_a_verdict_are_those_of_every_device(whole):
    whole.update(state="waiting", reason="asking")
    assert [one.state for one in whole.status.devices] == ["waiting"] * 2
    whole.obey(Verdict(may_train=False, reason="paused by its owner", until=9.0))
    assert {(one.state, one.pause_until) for one in whole.status.devices} == {("paused", 9.0)}
    assert (whole.status.state, whole.status.pause_until) == ("paused", 9.0)
    whole.obey(Verdict(may_train=True))
    assert whole.status.state == "waiting"


def test_what_a_device_says_is_labelled_and_said_once(whole, said):
    whole.parts[1].say("submitted it")
    whole.say("joined")
    assert said.lines == ["cpu: submitted it", "joined"]
    assert [text for _, text in whole.said] == said.lines


def test_progress_of_two_trainings_is_told_in_lines_of_each(whole, said):
    for step in (1, 2):
        for part in whole.parts:
            part.progress(event(step), durable_step=None)
    assert len(said.lines) == 2, "a line of each now, and more after some seconds"
    assert said.lines[0].startswith("cuda:0: step 1/100")
    assert said.lines[1].startswith("cpu: step 1/100")
    assert [one.step for one in whole.status.devices] == [2, 2]


def test_the_panel_has_a_row_for_each_device(whole, clock):
    gpu, cpu = whole.parts
    gpu.update(state="waiting", reason="nothing is open")
    cpu.update(state="fetching", assignment="a" * 17, work="a seed")
    cpu.progress(event(34), durable_step=30)
    found = dict(rows(whole.status, clock()))
    assert found["cuda:0"].startswith("waiting for work")
    assert found["cuda:0"].endswith(": nothing is open")
    for words in ("training", "a seed", "step 34/100", "64 tokens/s", "1:05 left", "loss 3.000"):
        assert words in found["cpu"]
    assert "credit" in found
    assert "state" not in found
    assert render(whole.status, (), clock()) is not None
    whole.update(finishing=True)
    assert "state" in dict(rows(whole.status, clock()))


def test_the_status_crosses_the_control_socket(whole):
    assert WorkerStatus.model_validate_json(whole.status.model_dump_json()) == whole.status
