"""Goals over replicates: what both intervals hold, and when a goal counts as reached."""

import math

import numpy as np
import pytest

from benchmarks.mixing.goals import Goal, percent, reached
from coordinator.scoring.statistics import DomainSums

GOAL = Goal("its ensemble", "mixture", "ensemble", "own", 2.0)
GROUPS = {"own": ["law", "poems"]}


def replicate(*, above, noise=0.0, rng_seed=0, documents=40):
    """Two texts on which the mixture loses `above` nats a label, more or less `noise`."""
    rng = np.random.default_rng(rng_seed)
    found = []
    for domain in ("law", "poems"):
        counts = np.random.default_rng(1).integers(20, 60, documents).astype(np.float64)
        ensemble = -3.0 * counts + rng.normal(0, 5, documents)
        lost = counts * (above + rng.normal(0, noise, documents))
        sums = {"ensemble": ensemble, "mixture": ensemble - lost}
        found.append(DomainSums(domain=domain, sums=sums, counts=counts, tied=()))
    return found


def test_equal_differences_leave_no_interval_over_replicates():
    (found,) = reached([GOAL], [replicate(above=0.01)] * 3, GROUPS)
    assert found.mean == pytest.approx(percent(1.0))
    assert found.each == pytest.approx([percent(1.0)] * 3)
    assert found.replicates == pytest.approx((found.mean, found.mean))
    assert found.documents == pytest.approx((found.mean, found.mean))
    assert found.verdict == "reached"


def test_documents_that_differ_widen_the_one_interval_and_trainings_the_other():
    (calm,) = reached([GOAL], [replicate(above=0.01, noise=0.2)] * 3, GROUPS)
    assert calm.documents[1] - calm.documents[0] > 1
    assert calm.replicates[1] - calm.replicates[0] == pytest.approx(0, abs=1e-6)
    trained = [replicate(above=above) for above in (0.0, 0.01, 0.02)]
    (uneven,) = reached([GOAL], trained, GROUPS)
    assert uneven.documents[1] - uneven.documents[0] == pytest.approx(0, abs=1e-6)
    # Student's t of two degrees of freedom: 4.303 standard errors of one point over root 3.
    assert uneven.replicates[1] == pytest.approx(percent(1.0 + 4.3027 / math.sqrt(3)), rel=1e-3)
    assert uneven.verdict == "reached by the mean alone"


def test_a_mean_above_the_limit_is_a_miss_and_one_below_it_whole_intervals_below_it():
    (missed,) = reached([GOAL], [replicate(above=0.05)] * 2, GROUPS)
    assert missed.verdict == "missed"
    (better,) = reached([GOAL], [replicate(above=-0.05)] * 2, GROUPS)
    assert better.mean < 0
    assert better.verdict == "reached"


def test_replicates_over_other_documents_are_refused():
    with pytest.raises(ValueError, match="other texts"):
        reached([GOAL], [replicate(above=0), replicate(above=0, documents=39)], GROUPS)
