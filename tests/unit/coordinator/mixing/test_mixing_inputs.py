"""What people give a mixture: recipes, prompts, text of an expert's domain. Bad ones are named."""

import numpy as np
import pytest

from coordinator.cli.errors import WrongUsage
from coordinator.cli.mixture_words import named, named_paths
from coordinator.mixing.contenders import _in_labels
from coordinator.mixing.knowing import Prompts, check_texts, read_prompts, sum_counts
from coordinator.mixing.members import read_text
from coordinator.mixing.texts import Text, shortened
from coordinator.mixing.variants import Levers, recipe_toml, variants_of
from shared.mixing.ingredients import MixingError
from shared.mixing.recipe import Recipe, RouterRecipe, read_recipe
from shared.shards import BOS_ID, Shard, write_shard


class Letters:
    """A vocabulary of bytes."""

    size, bos_id, eos_id = 300, BOS_ID, 2

    def encode(self, texts):
        return [[3 + byte for byte in text.encode()] for text in texts]

    def decode(self, ids):
        return bytes(one - 3 for one in ids).decode()

    def write_hf(self, _folder):
        raise AssertionError("not asked for here")


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(owned=(), anchor=True, expert_layers=(0, 2)),
        Recipe(shared_from="posterior", shares={"law.x": 0.25, "sea": 0.75}),
        Recipe(router=RouterRecipe(kind="linear", source="ridge", selection="top_k", top_k=1)),
        Recipe(router=RouterRecipe(kind="deep", source="noisy", hidden_size=8, always_on="sea")),
    ],
)
def test_a_recipe_survives_its_file(tmp_path, recipe):
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_toml(recipe.model_dump(mode="json")))
    assert read_recipe(path) == recipe


def test_named_recipes_stand_alone_unless_routers_are_named():
    levers = Levers(variants={"mine": {"anchor": True}})
    (variant,) = variants_of(levers, {})
    assert (variant.name, variant.recipe.anchor) == ("mine", True)
    both = Levers(variants={"mine": {"anchor": True}}, routers=["gateless"], anchors=[False])
    assert [one.name for one in variants_of(both, {})] == ["mine", "gateless"]
    with pytest.raises(MixingError, match=r"variants\.mine: recipe: anchor"):
        variants_of(Levers(variants={"mine": {"anchor": "yes"}}), {})


def test_prompts_are_read_by_expert(tmp_path):
    path = tmp_path / "prompts.toml"
    path.write_text('[law]\npositive = ["the court"]\n[sea]\npositive = ["a"]\nnegative = ["b"]\n')
    assert read_prompts(path) == {
        "law": Prompts(("the court",)),
        "sea": Prompts(("a",), ("b",)),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("law = 3", "law: 3"),
        ('[law]\npositive = "x"', "law.positive = 'x'"),
        ('[law]\nnegative = ["x"]', "law.positive: none"),
        ('[law]\nother = ["x"]', "a table of positive and negative"),
        ("[law", "no TOML"),
    ],
)
def test_damaged_prompts_are_named(tmp_path, text, words):
    (tmp_path / "prompts.toml").write_text(text)
    with pytest.raises(MixingError) as raised:
        read_prompts(tmp_path / "prompts.toml")
    assert words in str(raised.value)


def test_text_comes_from_a_shard_or_as_utf_8(tmp_path):
    (tmp_path / "text.txt").write_text("a b")
    (shard,) = read_text(tmp_path / "text.txt", Letters()).values()
    assert shard.tokens.tolist() == [BOS_ID, 3 + 97, 3 + 32, 3 + 98]
    write_shard(tmp_path / "text", [(np.asarray([BOS_ID, 7, 8]), 2)], vocab_size=300)
    (again,) = read_text(tmp_path / "text", Letters()).values()
    assert again.tokens.tolist() == [BOS_ID, 7, 8]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\xff\xfe", "neither a shard nor UTF-8"),
        (b"\1\0\0\0\0\0\0\0x", "no text"),
    ],
)
def test_text_that_is_none_is_named(tmp_path, data, words):
    (tmp_path / "text").write_bytes(data)
    with pytest.raises(MixingError, match=words):
        read_text(tmp_path / "text", Letters())


def test_an_expert_without_text_is_told_how_to_name_some():
    with pytest.raises(MixingError, match=r"--text law=FILE"):
        check_texts({"law": {}}, Recipe())
    check_texts({"law": {}}, Recipe(router=RouterRecipe(kind="gateless", source="none")))


def test_a_shortened_text_ends_with_a_document():
    sizes = [4, 3, 5]
    tokens = np.asarray([token for size in sizes for token in [BOS_ID, *range(9, 8 + size)]], "<u2")
    text = Text(
        name="a",
        role="trained",
        digest="a",
        shard=Shard(
            tokens=tokens,
            document_offsets=np.asarray([0, 4, 7, 12], "<i8"),
            document_bytes=np.asarray([1, 2, 3], "<i8"),
        ),
    )
    assert [shortened(text, count).num_labels for count in (1, 3, 4, 5, 6, 99)] == [
        3,
        3,
        5,
        5,
        9,
        9,
    ]
    assert shortened(text, 99) is text
    assert shortened(text, 4).digest != text.digest


def test_options_name_what_they_mean():
    assert named("law=a=b", what="--text") == ("law", "a=b")
    with pytest.raises(WrongUsage, match="NAME=FOLDER"):
        named("law", what="--text")
    with pytest.raises(WrongUsage, match="there twice"):
        named_paths(["law=a", "law=b"], option="--text")


def test_progress_over_several_texts_is_one(tmp_path):
    path = tmp_path / "text"
    write_shard(path, [(np.asarray([BOS_ID, 7, 8]), 2)] * 3, vocab_size=300)
    (shard,) = read_text(path, Letters()).values()
    told = []
    sum_counts(
        {"a": shard, "b": shard},
        vocab_size=300,
        num_pairs=0,
        tell=lambda done, total: told.append(done / total),
    )
    assert told == [0, 0.5, 1]


def test_windows_of_a_text_are_told_as_its_labels():
    labels = []
    tell = _in_labels(10, labels.append)
    for done in range(1, 4):
        tell(done, 3)
    assert labels == [3, 3, 4]
