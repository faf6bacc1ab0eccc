"""Which mixtures a comparison makes: each combination of levers once, under a name of its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.mixing.variants import MAX_VARIANTS, Levers, read_levers, variants_of
from shared.mixing.ingredients import MixingError

SHARES = {"law": 0.25, "sea": 0.75}


def names_of(**levers):
    return [variant.name for variant in variants_of(Levers(**levers), SHARES)]


def test_levers_of_other_routers_vary_nothing():
    assert names_of(routers=["gateless"], anchors=[False]) == ["gateless"]
    assert names_of(routers=["linear/ridge"], selections=["top-1"], anchors=[False]) == [
        "linear/ridge top-1"
    ]


def test_a_variants_name_says_how_it_differs():
    assert names_of(selections=["soft", "top-p0.6"], decays=[1.0, 0.97], routers=["prefix"]) == [
        "prefix soft decay 1",
        "prefix soft decay 0.97",
        "prefix top-p0.6 decay 1",
        "prefix top-p0.6 decay 0.97",
        "prefix soft decay 1+seed",
        "prefix soft decay 0.97+seed",
        "prefix top-p0.6 decay 1+seed",
        "prefix top-p0.6 decay 0.97+seed",
    ]


def test_a_recipe_is_what_its_name_says():
    (variant,) = variants_of(
        Levers(
            routers=["prefix"],
            selections=["top-2"],
            decays=[0.9],
            sharpness=[0.5],
            anchors=[True],
            shared_from=["posterior"],
            owned=[["embeddings", "head"]],
        ),
        SHARES,
    )
    recipe, router = variant.recipe, variant.recipe.router
    assert (router.selection, router.top_k, router.decay, router.sharpness) == (
        "top_k",
        2,
        0.9,
        0.5,
    )
    assert (recipe.owned, recipe.anchor, dict(recipe.shares)) == (
        ("embeddings", "head"),
        True,
        SHARES,
    )


@given(
    st.lists(st.sampled_from(["prefix", "gateless", "linear/ridge", "global/noisy"]), min_size=1),
    st.lists(st.sampled_from(["soft", "top-1", "top-2", "top-p0.5"]), min_size=1, max_size=4),
    st.lists(st.sampled_from([1.0, 0.97, 0.9]), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=1, max_size=3),
)
def test_no_two_variants_are_the_same(routers, selections, decays, anchors):
    levers = Levers(routers=routers, selections=selections, decays=decays, anchors=anchors)
    variants = variants_of(levers, SHARES)
    recipes = [variant.recipe.model_dump_json() for variant in variants]
    assert len(set(recipes)) == len(recipes) == len({variant.name for variant in variants})


def test_too_many_variants_are_refused_with_their_number():
    many = [1 - number / 1000 for number in range(MAX_VARIANTS)]
    with pytest.raises(MixingError, match=f"levers: {4 * MAX_VARIANTS} variants"):
        names_of(routers=["prefix"], decays=many)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('routers = ["oracle"]', "router.kind"),
        ('routers = ["prefix/ridge"]', "router.source 'ridge'"),
        ("decays = [0.0]\nrouters = ['prefix']", "router.decay"),
        ("selections = ['top-p0.0']", "top_p"),
    ],
)
def test_a_lever_that_no_recipe_has_is_named(tmp_path, text, words):
    (tmp_path / "levers.toml").write_text(text)
    with pytest.raises(MixingError, match=words):
        variants_of(read_levers(tmp_path / "levers.toml"), SHARES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("selections = ['top-0']", "selections.0 = 'top-0'"),
        ("routers = []", "routers"),
        ("colours = [1]", "colours"),
        ("routers = [", "no TOML"),
    ],
)
def test_a_damaged_file_of_levers_is_named_with_its_key(tmp_path, text, words):
    path = tmp_path / "levers.toml"
    path.write_text(text)
    with pytest.raises(MixingError, match=words) as raised:
        read_levers(path)
    assert str(path) in str(raised.value)


def test_a_missing_file_of_levers_is_named(tmp_path):
    with pytest.raises(MixingError, match=r"none\.toml: cannot be read"):
        read_levers(tmp_path / "none.toml")
