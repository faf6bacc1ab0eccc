"""What is made of log-likelihoods that no sound model gives."""

import math

import numpy as np
import pytest

from coordinator.scoring.measuring import FLOOR, floored
from shared.ensemble import perplexity


def test_sound_log_likelihoods_stay_bit_for_bit():
    sound = np.array([0.0, 5e-5, -1e-30, -3.25, FLOOR], dtype=np.float32)
    assert floored(sound).tobytes() == sound.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -3e38, 3e38, 0.1])
def test_what_is_not_finite_too_low_or_impossible_is_the_floor(value):
    found = floored(np.array([-1.0, value], dtype=np.float32))
    assert found.dtype == np.float32
    assert found.tolist() == [-1.0, FLOOR]


def test_the_perplexity_of_the_floor_is_a_number():
    assert math.isfinite(perplexity(np.full(3, FLOOR, dtype=np.float32)))
