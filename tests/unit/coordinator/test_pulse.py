"""Signs of life, stopping and progress, with a clock that the test moves."""

import logging
import threading

import pytest

from coordinator.scoring.pulse import BEAT_SECONDS, Pulse, Stopped, with_signs_of_life

LOG = logging.getLogger("test.pulse")


class Watched:
    """A pulse with its clock, its beats and its stop."""

    def __init__(self):
        self.time = 100.0
        self.beats = []
        self.stop = threading.Event()
        self.pulse = Pulse(beat=self.beats.append, stop=self.stop, now=lambda: self.time, log=LOG)


@pytest.fixture
def watched():
    return Watched()


def test_it_beats_at_once_and_then_at_its_interval_however_often_it_is_called(watched):
    for _ in range(100):
        watched.pulse.tick()
        watched.time += BEAT_SECONDS / 10
    assert len(watched.beats) == 10
    assert watched.beats[0] == 100.0


def test_a_clock_that_is_set_back_does_not_silence_it(watched):
    watched.pulse.tick()
    watched.time -= 3600
    watched.pulse.tick()
    assert len(watched.beats) == 2


def test_work_in_hand_ends_when_the_role_is_to_stop(watched):
    task = watched.pulse.task("scoring", 10)
    task.advance(1)
    watched.stop.set()
    with pytest.raises(Stopped):
        task.advance(1)


def test_short_work_is_not_reported(watched, caplog):
    caplog.set_level(logging.INFO)
    task = watched.pulse.task("scoring", 2)
    for _ in range(2):
        watched.time += 2.0
        task.advance(1)
    assert caplog.messages == []


def test_long_work_says_how_far_it_is_and_how_long_it_still_takes(watched, caplog):
    caplog.set_level(logging.INFO)
    task = watched.pulse.task("scoring", 100)
    for _ in range(10):
        watched.time += 1.0
        task.advance(2)
    assert caplog.messages == [
        "scoring: 10 %, about 45 s left",
        "scoring: 20 %, about 40 s left",
    ]


def test_what_was_cached_does_not_make_the_rest_look_fast(watched, caplog):
    caplog.set_level(logging.INFO)
    task = watched.pulse.task("scoring", 100)
    task.skip(90)
    watched.time += 5.0
    task.advance(1)
    assert caplog.messages == ["scoring: 91 %, about 45 s left"]


def test_work_that_knows_no_pulse_goes_on_under_signs_of_life(watched):
    seen = threading.Event()

    def tick():
        watched.time += BEAT_SECONDS
        watched.pulse.tick()
        if len(watched.beats) >= 3:
            seen.set()

    assert with_signs_of_life(lambda: seen.wait(60), tick, every=0.01)
    assert len(watched.beats) >= 3


def test_work_that_knows_no_pulse_ends_before_the_role_stops(watched):
    ended = threading.Event()
    watched.stop.set()

    def work():
        threading.Event().wait(0.05)
        ended.set()

    with pytest.raises(Stopped):
        with_signs_of_life(work, watched.pulse.tick, every=0.01)
    assert ended.is_set()


def test_what_work_that_knows_no_pulse_raises_is_raised(watched):
    def work():
        raise TimeoutError("the disk does not answer")

    with pytest.raises(TimeoutError, match="the disk"):
        with_signs_of_life(work, watched.pulse.tick, every=0.01)
