"""Experts become a mixture's folder: whole or not at all, or refused by name."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mixables
import numpy as np
import pytest
import torch

from protocol.specs import ModelShape
from shared import model as models
from shared.mixing.facts import read_facts
from shared.mixing.ingredients import Ingredient, MixingError
from shared.mixing.making import make_mixture
from shared.mixing.names import expert_name
from shared.mixing.opening import open_mixture
from shared.mixing.recipe import Recipe, make_recipe, read_recipe
from shared.mixing.writing import check_header
from shared.tensorfiles import model_tensors, read_header, read_tensors, write_tensors

NAMES = ("python", "law", "sea")
ALL = ("embeddings", "head", "norms", "q_proj", "k_proj", "v_proj", "o_proj")
NORM = "model.layers.1.post_attention_layernorm.weight"
TOKENS = torch.from_numpy(np.random.default_rng(0).integers(2, mixables.SHAPE.vocab_size, (2, 20)))


def experts_in(folder: Path, **options: Any) -> list[Ingredient]:
    return [mixables.expert(folder, name, **options) for name in NAMES]


def made(
    folder: Path,
    *,
    experts: list[Ingredient] | None = None,
    recipe: dict[str, Any] | None = None,
    into: str = "mixture",
    **changes: Any,
) -> Path:
    experts = experts_in(folder) if experts is None else experts
    parsed = make_recipe(recipe or {})
    names = [one.name for one in experts] + ["seed"] * parsed.anchor
    values = {
        "statistics": {name: mixables.statistics(name) for name in names},
        "vocabulary": mixables.vocabulary(),
        "into": folder / into,
        **changes,
    }
    make_mixture(experts, values.pop("seed", mixables.seed(folder)), parsed, **values)
    return folder / into


def logits(folder: Path, one: Ingredient) -> torch.Tensor:
    """What the ingredient itself computes."""
    forms = model_tensors(one.shape)
    write_tensors(folder / "one.safetensors", {name: one.read(name) for name in forms})
    with torch.inference_mode():
        return models.load(folder / "one.safetensors", one.shape)(input_ids=TOKENS).logits


def forced(folder: Path, expert: int) -> torch.Tensor:
    model = open_mixture(folder)
    with torch.inference_mode():
        return model(input_ids=TOKENS, gates=model.forced(expert, like=TOKENS)).logits


@pytest.mark.parametrize(
    ("trains", "parts", "owned"),
    [
        ("ffn", (), ()),
        ("ffn_embeddings", (), ("embeddings", "head")),
        ("all", (), ALL),
        ("ffn", ("layers.1.self_attn.k_proj", "model.norm"), ("norms", "k_proj")),
    ],
)
def test_experts_own_what_they_trained_and_compute_what_they_did(tmp_path, trains, parts, owned):
    experts = experts_in(tmp_path, trains=trains, parts=parts)
    folder = made(tmp_path, experts=experts)
    facts, tensors = read_facts(folder), read_tensors(folder / "model.safetensors")
    assert facts.owned == owned
    assert json.loads((folder / "config.json").read_bytes())["owned"] == list(owned)
    for number, one in enumerate(experts):
        for name in model_tensors(one.shape):
            own = expert_name(name, number)
            assert np.array_equal(tensors[own if own in tensors else name], one.read(name)), name
        assert torch.equal(forced(folder, number), logits(tmp_path, one))


def test_one_expert_that_trained_more_makes_the_part_every_experts_own(tmp_path):
    experts = experts_in(tmp_path)
    experts[1] = mixables.expert(tmp_path, "law", trains="ffn_embeddings")
    folder = made(tmp_path, experts=experts, recipe={"anchor": True})
    facts = read_facts(folder)
    assert facts.owned == ("embeddings", "head")
    assert facts.names == ("seed", *NAMES)
    assert facts.experts[2].changed(facts.seed) == ("embeddings", "head")
    for number, one in enumerate([mixables.seed(tmp_path), *experts]):
        assert torch.equal(forced(folder, number), logits(tmp_path, one))


def test_tied_embeddings_are_untied_where_experts_have_their_own(tmp_path):
    tied = mixables.SHAPE.model_copy(update={"tied_embeddings": True})
    mixables.seed(tmp_path, shape=tied)
    plain = [
        mixables.expert(tmp_path, name, seed=mixables.seed(tmp_path, shape=tied)) for name in NAMES
    ]
    folder = made(tmp_path, experts=plain, seed=mixables.seed(tmp_path, shape=tied), into="tied")
    assert "lm_head.weight" not in read_header(folder / "model.safetensors")
    own = mixables.expert(
        tmp_path, "law", trains="ffn_embeddings", seed=mixables.seed(tmp_path, shape=tied)
    )
    experts = [plain[0], own]
    folder = made(
        tmp_path, experts=experts, seed=mixables.seed(tmp_path, shape=tied), into="untied"
    )
    assert read_facts(folder).owned == ("embeddings", "head")
    assert not open_mixture(folder).config.tie_word_embeddings
    for number, one in enumerate(experts):
        assert torch.equal(forced(folder, number), logits(tmp_path, one))


def test_what_an_expert_trained_and_the_recipe_shares_is_told(tmp_path):
    folder = made(tmp_path, experts=experts_in(tmp_path, trains="all"), recipe={"owned": ["head"]})
    facts = read_facts(folder)
    assert facts.owned == ("head",)
    assert facts.lost("law") == tuple(part for part in ALL if part != "head")
    seed, tensors = mixables.seed(tmp_path), read_tensors(folder / "model.safetensors")
    assert np.array_equal(tensors[NORM], seed.read(NORM))


@pytest.mark.parametrize("source", ["average", "posterior"])
def test_shared_weights_are_the_experts_mean_in_double_precision(tmp_path, source):
    experts = experts_in(tmp_path, trains="all")
    shares = {"python": 1.0, "law": 1.0, "sea": 1.0}
    recipe: dict[str, Any] = {"owned": ["head"], "shared_from": source}
    if source == "posterior":
        shares = {"python": 0.7, "law": 0.1, "sea": 0.2}
        recipe["shares"] = shares
    tensors = read_tensors(made(tmp_path, experts=experts, recipe=recipe) / "model.safetensors")
    for name in ("model.embed_tokens.weight", NORM, "model.layers.0.self_attn.o_proj.weight"):
        mean = sum(shares[one.name] * one.read(name).astype(np.float64) for one in experts)
        assert np.array_equal(tensors[name], (mean / sum(shares.values())).astype(np.float32))
    assert np.array_equal(tensors["lm_head.experts.2.weight"], experts[2].read("lm_head.weight"))


@pytest.mark.parametrize("source", ["seed", "average"])
def test_ffns_of_layers_without_experts_are_shared(tmp_path, source):
    experts = experts_in(tmp_path)
    recipe = {"expert_layers": [1], "shared_from": source}
    folder = made(tmp_path, experts=experts, recipe=recipe)
    tensors = read_tensors(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    seed = mixables.seed(tmp_path).read(name)
    if source == "seed":
        assert np.array_equal(tensors[name], seed)
    else:
        units = [one.read(name).astype(np.float64) for one in experts]
        assert np.array_equal(tensors[name][:, 16:], units[0][:, 16:].astype(np.float32))
        first = np.mean([one[:, :12] for one in units], axis=0)
        assert np.allclose(tensors[name][:, :12], first, rtol=1e-7)
    assert "model.layers.1.mlp.experts.2.down_proj.weight" in tensors
    assert open_mixture(folder).config.base_width == 24


ROUTERS: list[dict[str, Any]] = [
    {"kind": "prefix", "decay": 0.97, "always_on": "law"},
    {"kind": "gateless"},
    {"kind": "linear", "selection": "top_k", "top_k": 1},
    {"kind": "linear", "source": "hidden", "bias": True},
    {"kind": "linear", "source": "ridge", "bias": True, "selection": "top_p"},
    {"kind": "global", "source": "ridge"},
    {"kind": "global", "bias": True},
    {"kind": "fine", "source": "hidden"},
    {"kind": "fine"},
    {"kind": "deep", "hidden_size": 5},
    {"kind": "deep"},
]


@pytest.mark.parametrize("router", ROUTERS, ids=lambda one: "-".join(map(str, one.values())))
def test_every_router_is_made_opened_and_made_again_with_the_same_bytes(tmp_path, router):
    folder = made(tmp_path, recipe={"anchor": True, "router": router})
    with torch.inference_mode():
        found = open_mixture(folder)(input_ids=TOKENS).logits
    assert torch.isfinite(found).all()
    again = made(tmp_path, recipe={"anchor": True, "router": router}, into="again")
    assert mixables.bytes_of(folder) == mixables.bytes_of(again)


def test_the_prefix_router_has_the_table_of_the_counts(tmp_path):
    folder = made(tmp_path, recipe={"router": {"smoothing": 0.5}})
    table = read_tensors(folder / "model.safetensors")["model.router.log_likelihoods"]
    for column, name in enumerate(NAMES):
        counts = mixables.statistics(name).tokens.counts + 0.5
        assert np.allclose(table[:, column], np.log(counts / counts.sum()), atol=1e-6)


def changed_tensor(one: Ingredient, name: str, change: Callable[[np.ndarray], np.ndarray]):
    """The ingredient with one tensor changed, each read into new memory."""

    def read(wanted: str) -> np.ndarray:
        tensor = one.read(wanted).copy()
        return change(tensor) if wanted == name else tensor

    return replace(one, read=read)


def nan_at_the_end(tensor: np.ndarray) -> np.ndarray:
    tensor.reshape(-1)[-1] = np.nan
    return tensor


def other(folder: Path, **shape: Any) -> Ingredient:
    """An expert of another shape than the seed's."""
    form = ModelShape.model_validate({**mixables.SHAPE.model_dump(), **shape})
    path = folder / "other.safetensors"
    models.save(models.build(form, rng_seed=5), path)
    return mixables.ingredient(path, form, name="other")


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ({"hidden_size": 32}, r"tensor model.embed_tokens.weight is \[300, 32\], .*\[300, 16\]"),
        ({"vocab_size": 301}, r"tensor model.embed_tokens.weight is \[301, 16\]"),
        ({"num_layers": 1}, r"tensor model.layers.1.self_attn.q_proj.weight is missing"),
        ({"num_layers": 3}, r"tensor model.layers.2.self_attn.q_proj.weight: the seed has none"),
        ({"num_kv_heads": 4}, r"tensor model.layers.0.self_attn.k_proj.weight is \[16, 16\]"),
        ({"num_heads": 2, "num_kv_heads": 1}, r"num_heads 2, .*layers.0.self_attn.q_proj.weight"),
        ({"rope_theta": 1e4}, r"rope_theta 10000.0, the seed has 50000.0: .*q_proj.weight"),
        ({"norm_eps": 1e-6}, r"norm_eps 1e-06, .*layers.0.input_layernorm.weight"),
        ({"tied_embeddings": True}, r"tensor lm_head.weight is missing"),
        ({"context_length": 16}, r"context_length 16, expected at least that of the seed, 32"),
    ],
)
def test_an_expert_of_another_shape_is_refused_by_its_first_tensor(tmp_path, shape, problem):
    with pytest.raises(MixingError, match=f"^other: {problem}"):
        made(tmp_path, experts=[*experts_in(tmp_path), other(tmp_path, **shape)])
    assert not (tmp_path / "mixture").exists()


def missing(one: Ingredient) -> Ingredient:
    return replace(one, forms={name: form for name, form in one.forms.items() if name != NORM})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (missing, rf"law: tensor {NORM} is missing, expected \[16\]"),
        (lambda one: changed_tensor(one, NORM, nan_at_the_end), f"law: tensor {NORM} has NaN"),
        (lambda one: changed_tensor(one, NORM, lambda _: np.ones(4)), rf"law: tensor {NORM} is \["),
        (lambda one: replace(one, vocabulary="1" * 64), "law: its tokenizer has digest 1111"),
        (lambda one: replace(one, name="python"), "2 are called 'python'"),
        (lambda one: replace(one, name="Case Law"), "the name 'Case Law', expected lower-case"),
        (lambda one: replace(one, name="../law"), r"the name '\.\./law'"),
        (lambda one: replace(one, domain="Law!"), "the name 'Law!'"),
        (lambda one: replace(one, name="seed"), "'seed' is what the seed is called"),
    ],
)
def test_an_expert_that_does_not_fit_is_refused_by_name(tmp_path, change, problem):
    experts = experts_in(tmp_path)
    experts[1] = change(experts[1])
    statistics = {one.name: mixables.statistics("law") for one in experts}
    with pytest.raises(MixingError, match=problem):
        made(tmp_path, experts=experts, statistics=statistics)
    assert not (tmp_path / "mixture").exists()


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        ({"owned": ["heads"]}, r"owned = \['heads'\]: expected 'auto', or some of"),
        ({"owned": ["head", "head"]}, "expected each part once"),
        ({"router": {"selection": "top_k", "top_k": 4}}, "top_k 4: expected at most 3"),
        ({"router": {"always_on": "sky"}}, "always_on 'sky': expected one of"),
        ({"router": {"kind": "prefix", "source": "ridge"}}, "router.source 'ridge'"),
        ({"router": {"kind": "linear", "source": "prompts"}}, "prompts: none for 'python'"),
        ({"router": {"kind": "linear"}, "owned": ["head"]}, "owned: .*decides in the layers"),
        ({"expert_layers": [0, 2]}, "expert_layers .* expected layers up to 1"),
        ({"expert_layers": [1, 0]}, "expert_layers .* ascending"),
        ({"shared_from": "posterior"}, "shares of"),
        ({"shared_from": "posterior", "shares": {"law": 1.0}}, "shares.python: missing"),
        ({"shares": {"law": 1.0}}, "shares of"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_by_key(tmp_path, recipe, problem):
    with pytest.raises(MixingError, match=problem):
        made(tmp_path, recipe=recipe)
    assert not (tmp_path / "mixture").exists()


def test_zero_experts_missing_statistics_and_a_folder_in_the_way_are_refused(tmp_path):
    with pytest.raises(MixingError, match="experts: none, expected at least one"):
        made(tmp_path, experts=[])
    few = {name: mixables.statistics(name) for name in NAMES[:2]}
    with pytest.raises(MixingError, match="counts: none for 'sea'"):
        made(tmp_path, statistics=few)
    with pytest.raises(MixingError, match="statistics of 'sky': no expert is called so"):
        made(tmp_path, statistics={**few, "sky": few["law"]})
    (tmp_path / "mixture").mkdir()
    with pytest.raises(MixingError, match="mixture: is there already"):
        made(tmp_path)


def test_an_adapter_on_what_the_recipe_shares_is_refused_and_with_auto_owned(tmp_path):
    adapted = mixables.expert(tmp_path, "law", parts=["layers.1.self_attn.o_proj"], is_adapter=True)
    experts = [mixables.expert(tmp_path, "python"), adapted]
    assert read_facts(made(tmp_path, experts=experts)).owned == ("o_proj",)
    with pytest.raises(MixingError, match=r"law: .*model.layers.1.self_attn.o_proj.weight"):
        made(tmp_path, experts=experts, recipe={"owned": ["head"]}, into="other")


class Killed(BaseException):
    """What a test raises in place of a SIGKILL."""


def test_a_making_that_dies_at_any_read_leaves_nothing(tmp_path):
    reads = 0

    def counting(limit: int) -> list[Ingredient]:
        def reader(one: Ingredient):
            def read(name: str) -> np.ndarray:
                nonlocal reads
                reads += 1
                if reads > limit:
                    raise Killed
                return one.read(name)

            return replace(one, read=read)

        return [reader(one) for one in experts_in(tmp_path)]

    made(tmp_path, experts=counting(10**6), into="mixtures/whole")
    total = reads
    for limit in {*range(0, total, 17), total - 1}:
        reads = 0
        with pytest.raises(Killed):
            made(tmp_path, experts=counting(limit), into="mixtures/half")
        assert [path.name for path in (tmp_path / "mixtures").iterdir()] == ["whole"]


@pytest.mark.parametrize("recipe", [{}, {"owned": ["head"], "shared_from": "average"}])
def test_memory_is_bounded_by_the_largest_tensor_not_by_the_experts(tmp_path, recipe):
    wide = mixables.SHAPE.model_copy(update={"vocab_size": 40_000, "ffn_width": 24})
    seed = mixables.seed(tmp_path, shape=wide)
    parts = ["embed_tokens", "lm_head"]
    experts = [mixables.expert(tmp_path, name, parts=parts, seed=seed) for name in NAMES]
    copying = [changed_tensor(one, "", lambda tensor: tensor) for one in experts]
    tracemalloc.start()
    made(
        tmp_path,
        experts=copying,
        seed=seed,
        recipe={**recipe, "router": {"kind": "gateless"}},
        statistics={},
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest = 4 * wide.vocab_size * wide.hidden_size
    assert peak < 5 * largest
    assert (tmp_path / "mixture" / "model.safetensors").stat().st_size > 3 * largest


def test_more_tensors_than_a_header_can_name_are_refused():
    forms = {
        f"model.layers.0.mlp.experts.{number}.up_proj.weight": ("F32", (1,))
        for number in range(9000)
    }
    with pytest.raises(MixingError, match="9000 tensors: a header of"):
        check_header(forms)


def test_what_an_earlier_making_left_behind_is_in_nobodys_way(tmp_path):
    draft = tmp_path / ".mixture.writing"
    draft.mkdir()
    (draft / "model.safetensors").write_bytes(b"half")
    folder = made(tmp_path)
    assert not draft.exists()
    assert read_facts(folder).names == NAMES


def test_a_recipe_is_read_from_toml(tmp_path):
    path = tmp_path / "mix.toml"
    path.write_text('anchor = true\nowned = ["head"]\n[router]\nkind = "linear"\ntop_k = 1\n')
    recipe = read_recipe(path)
    assert (recipe.owned, recipe.anchor, recipe.router.source) == (("head",), True, "noisy")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    path.write_text("[router]\nkinds = 1\n")
    with pytest.raises(MixingError, match=r"mix.toml: recipe: router.kinds: unknown key"):
        read_recipe(path)
    path.write_text("[router\n")
    with pytest.raises(MixingError, match=r"mix.toml: no TOML"):
        read_recipe(path)
