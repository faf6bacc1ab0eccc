"""What is measured on what, so that nothing that is reported is missing and nothing is idle."""

from coordinator.scoring.lineup import Lineup, SchemeLineup, named, needed_texts

DOMAINS = ("cs", "law", "math", "news")
KEEP_ALL = SchemeLineup(members=("l1", "m1"), experts={"law": "l1", "math": "m1"})
LINEAGE = SchemeLineup(members=("m2",), experts={"law": "l1", "math": "m2"})


def lineup(**changes):
    values = {
        "seed": "s",
        "dense": "d",
        "schemes": {"A": KEEP_ALL},
        "rounds": {"law": 1, "math": 1},
        **changes,
    }
    return Lineup(**values)


def test_seed_dense_and_members_are_measured_on_every_domain() -> None:
    needed = needed_texts(lineup(), DOMAINS)
    assert needed == dict.fromkeys(("s", "d", "l1", "m1"), DOMAINS)


def test_without_a_baseline_none_is_measured() -> None:
    assert "d" not in needed_texts(lineup(dense=None), DOMAINS)


def test_an_expert_that_went_on_is_measured_on_what_was_trained_up_to_its_round() -> None:
    later = lineup(schemes={"A": LINEAGE}, rounds={"law": 1, "math": 2})
    needed = needed_texts(later, DOMAINS)
    assert needed["l1"] == ("law",)
    assert needed["m2"] == DOMAINS


def test_an_expert_of_two_schemes_is_measured_on_what_either_needs() -> None:
    both = lineup(schemes={"A": LINEAGE, "B": KEEP_ALL}, rounds={"law": 1, "math": 2})
    assert needed_texts(both, DOMAINS)["l1"] == DOMAINS


def test_names_are_in_order_so_that_equal_ensembles_are_equal() -> None:
    turned = SchemeLineup(members=("m1", "l1"), experts={"math": "m1", "law": "l1"})
    names = {"s": "seed", "d": "dense", "l1": "law-1", "m1": "math-1"}
    found = named(lineup(schemes={"A": KEEP_ALL, "B": turned}), names, {"l1": "s", "m1": "gone"})
    assert found.members["A"] == found.members["B"] == ("law-1", "math-1")
    assert list(found.experts["B"]) == ["law", "math"]
    assert found.parents == {"law-1": "seed"}
    assert found.schemes == ("A", "B")
