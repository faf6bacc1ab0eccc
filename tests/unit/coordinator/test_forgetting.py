"""What a lineage's experts still know of earlier domains."""

from coordinator.scoring.forgetting import lineage_of, remembered
from coordinator.scoring.lineup import Contestants
from coordinator.scoring.outcome import Measure

EXPERTS = {"a": "a1", "b": "b2", "c": "c3", "x": "x1", "y": "y2"}
PARENTS = {"a1": "seed", "b2": "a1", "c3": "b2", "x1": "seed", "y2": "x1"}
ROUNDS = {"a": 1, "b": 2, "c": 3, "x": 1, "y": 2}


def contestants(parents=PARENTS, experts=EXPERTS):
    return Contestants(
        seed="seed",
        dense=None,
        members={"A": ("c3", "y2")},
        experts={"A": experts},
        rounds=ROUNDS,
        classes={},
        parents=parents,
    )


def measures():
    return {
        domain: {
            name: Measure(perplexity=10.0 * number + index + 1, bits_per_byte=1.0)
            for index, name in enumerate(("seed", *EXPERTS.values()))
        }
        for number, domain in enumerate(EXPERTS)
    }


def test_a_lineage_goes_from_its_first_expert_to_this_one() -> None:
    assert lineage_of("c3", contestants(), "A") == ("a1", "b2", "c3")
    assert lineage_of("x1", contestants(), "A") == ("x1",)


def test_each_expert_stands_on_every_domain_of_its_lineage_so_far() -> None:
    found = remembered(contestants(), measures())
    seen = [(one.expert, one.after_round, one.domain, one.trained_in) for one in found]
    assert seen == [
        ("a1", 1, "a", 1),
        ("b2", 2, "a", 1),
        ("b2", 2, "b", 2),
        ("c3", 3, "a", 1),
        ("c3", 3, "b", 2),
        ("c3", 3, "c", 3),
        ("x1", 1, "x", 1),
        ("y2", 2, "x", 1),
        ("y2", 2, "y", 2),
    ]
    forgotten = next(one for one in found if (one.expert, one.domain) == ("c3", "a"))
    assert forgotten.perplexity == measures()["a"]["c3"].perplexity
    assert forgotten.seed == measures()["a"]["seed"].perplexity


def test_a_scheme_whose_experts_all_branch_from_the_seed_has_nothing_to_forget() -> None:
    assert remembered(contestants(parents=dict.fromkeys(PARENTS, "seed")), measures()) == ()
