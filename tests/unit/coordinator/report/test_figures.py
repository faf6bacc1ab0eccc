"""Figures: drawn from whatever a run holds, with text as it stands."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.report.figures.budget import budget_figure
from coordinator.report.figures.canvas import drawable, token_label
from coordinator.report.figures.curves import MAX_POINTS, curves_figure, dev_curves, thinned
from coordinator.report.figures.differences import differences_figures, limits_of
from coordinator.report.figures.forgetting import forgetting_figures
from coordinator.report.figures.posterior import SHOWN, posterior_figure
from coordinator.report.replicates import Effect
from coordinator.report.study import Study
from coordinator.report.values import Figure
from tests.outcomes import SEED, Case, make_results


def size_of(figure: Figure) -> tuple[int, int]:
    """Pixels, from the PNG's header."""
    assert figure.png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", figure.png[16:24])
    return width, height


def effect(difference: float, *, reach: float) -> Effect:
    return Effect(
        a="a",
        b="b",
        where="python",
        num_domains=1,
        difference=difference,
        low=difference - reach,
        high=difference + reach,
        verdict="unclear",
        spread=None,
        each=(),
    )


def test_measured_curves_begin_with_the_model_that_training_started_from():
    results = make_results(Case(own=1, schemes=("MHo-IHo",), has_probes=True))
    (curve,) = dev_curves(results)
    base = next(one for one in results.checkpoints if one.name == SEED).dev_perplexity["python"]
    assert [step for step, _ in curve.points] == [0, 50, 100, 400]
    assert curve.points[0] == (0, math.log(base))


def test_checkpoints_of_other_widths_are_other_curves():
    results = make_results(Case(own=1, schemes=("MHo-IHo", "MHe-IHe")))
    assert sorted(curve.size for curve in dev_curves(results)) == [(144, 0), (192, 0)]


@pytest.mark.parametrize("count", [1, 2, 20, 21, 64, 4000])
def test_thinned_curves_keep_their_ends(count: int):
    kept = thinned(count, limit=MAX_POINTS)
    assert len(kept) == len(set(kept)) == min(count, MAX_POINTS)
    assert (kept[0], kept[-1]) == (0, count - 1)


def test_learning_curves_say_who_reported_them():
    figure = curves_figure(make_results(Case(own=1, schemes=("MHo-IHo",), worker="anna")))
    assert figure is not None
    assert "own worker reported" in figure.note
    assert figure.tables[0].records()[0]["worker"] == "anna"
    assert min(size_of(figure)) > 100


def test_no_curves_no_figure():
    results = make_results(Case(own=1, schemes=("MHo-IHo",)))
    bare = [
        one.model_copy(update={"curve": (), "dev_perplexity": {}}) for one in results.checkpoints
    ]
    assert curves_figure(results.model_copy(update={"checkpoints": tuple(bare)})) is None


def test_there_is_a_figure_for_every_reference_and_like_stands_with_like():
    study = Study(runs=(make_results(Case(own=2, held_out=1)),))
    figures = {figure.name: figure for figure in differences_figures(study)}
    assert set(figures) == {
        "differences-MHo-IHo",
        "differences-dense",
        "differences-MHo-IHo-with-seed",
        "differences-dense-with-seed",
        "differences-seed-M",
    }
    for name, figure in figures.items():
        for record in figure.tables[0].records():
            assert str(record["a"]).endswith("+seed") == ("with-seed" in name)


def test_a_scheme_alone_is_shown_against_the_seed():
    study = Study(runs=(make_results(Case(own=1, schemes=("MHo-IHo",), has_dense=False)),))
    assert [one.name for one in differences_figures(study)] == ["differences-seed-M"]


def test_the_budget_of_every_expert_is_in_the_numbers():
    study = Study(runs=(make_results(Case(own=3)),))
    figure = budget_figure(study)
    assert figure is not None
    assert len(figure.tables[0].rows) == 3 * 2


def test_what_is_forgotten_is_counted_from_the_domains_own_round():
    results = make_results(Case(own=6, rounds=2, schemes=("MHo-IHo",)))
    (figure,) = forgetting_figures(results.remembered)
    for record in figure.tables[0].records():
        if record["after_round"] == record["trained_in"]:
            assert record["since_trained"] == 0
        else:
            assert record["since_trained"] == pytest.approx(12, abs=6)
        expected = 100 * math.log(record["perplexity"] / record["seed"])  # type: ignore[operator]
        assert record["against_seed"] == pytest.approx(expected)


def test_one_round_has_nothing_to_forget():
    assert forgetting_figures(make_results(Case()).remembered) == ()


def test_a_long_text_becomes_a_taller_figure_and_every_weight_is_in_the_numbers():
    short, long = (
        make_results(Case(own=12, tokens=tuple("a b") * count, schemes=("MHo-IHo",))).traces[0]
        for count in (3, 30)
    )
    assert len(long.members) > SHOWN
    figure = posterior_figure(long, number=1)
    assert size_of(figure)[1] > size_of(posterior_figure(short, number=1))[1]
    rows = figure.tables[0].records()
    assert len(rows) == 90
    assert sum(rows[5][f"weight_{index}"] for index in range(12)) == pytest.approx(1)  # type: ignore[misc]


def test_the_same_values_give_the_same_bytes():
    trace = make_results(Case()).traces[0]
    assert posterior_figure(trace, number=1).png == posterior_figure(trace, number=1).png


def test_text_without_glyphs_is_drawn_as_boxes_and_line_breaks_are_seen():
    assert drawable("語🙂\u202e") == "□□□"
    assert drawable("x" * 30) == "x" * 23 + "…"
    assert token_label("▁def\n") == "␣def⏎"


@given(
    st.lists(
        st.tuples(st.floats(-90, 90), st.floats(0, 900)).map(
            lambda one: effect(one[0], reach=one[1])
        ),
        min_size=1,
        max_size=9,
    )
)
def test_an_axis_shows_every_difference_and_nought_and_says_when_it_cuts(effects: list[Effect]):
    low, high, is_cut = limits_of(effects)
    assert low < 0 < high
    assert all(low < one.difference < high for one in effects)
    assert is_cut == any(one.low < low or one.high > high for one in effects)
    assert max(-low, high) <= 2.1 * max(*(abs(one.difference) for one in effects), 0.5)
