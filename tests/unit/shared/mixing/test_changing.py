"""Experts join and leave a mixture: what stays is as if the others had never been there."""

import json
import tempfile
from pathlib import Path
from typing import Any

import mixables
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.mixing.changing import add_expert, remove_expert, replace_expert
from shared.mixing.facts import read_facts
from shared.mixing.ingredients import Ingredient, MixingError
from shared.mixing.making import plan_mixture
from shared.mixing.opening import open_mixture
from shared.mixing.recipe import make_recipe
from shared.mixing.router_tensors import Known
from shared.mixing.writing import write_mixture
from shared.tensorfiles import read_tensors, write_tensors

PREFIX: dict[str, Any] = {"anchor": True}
RECIPES: dict[str, dict[str, Any]] = {
    "prefix": PREFIX,
    "gateless": {"router": {"kind": "gateless"}},
    "noisy": {"router": {"kind": "linear", "rng_seed": 3}, "anchor": True},
    "hidden": {"router": {"kind": "linear", "source": "hidden", "bias": True}},
    "prompts": {"router": {"kind": "fine", "source": "prompts"}, "anchor": True},
    "ridge": {"router": {"kind": "linear", "source": "ridge", "bias": True}, "anchor": True},
    "global": {"router": {"kind": "global", "source": "ridge"}},
    "deep": {"router": {"kind": "deep", "hidden_size": 4}},
    "some layers": {"expert_layers": [1], "anchor": True},
    "some parts": {"owned": ["head"]},
}


def prompts(name: str) -> np.ndarray:
    shape = mixables.SHAPE
    rng = np.random.default_rng(list(name.encode()))
    return rng.normal(size=(shape.num_layers + 1, shape.hidden_size))


def made(
    folder: Path,
    experts: list[Ingredient],
    recipe: dict[str, Any],
    into: str,
    *,
    seed: Ingredient | None = None,
) -> Path:
    parsed = make_recipe(recipe)
    names = ["seed"] * parsed.anchor + [one.name for one in experts]
    plan = plan_mixture(
        experts,
        seed or mixables.seed(folder),
        parsed,
        known=Known(
            {name: mixables.statistics(name) for name in names},
            {name: prompts(name) for name in names},
        ),
        vocabulary=mixables.vocabulary(),
    )
    write_mixture(plan, folder / into)
    return folder / into


def known(name: str) -> dict[str, Any]:
    return {"statistics": mixables.statistics(name), "prompts": prompts(name)}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_after_a_removal_a_mixture_is_one_that_never_had_the_expert(tmp_path, recipe):
    python, law, sea = (mixables.expert(tmp_path, name) for name in mixables.WIDTHS)
    whole = made(tmp_path, [python, law, sea], recipe, "whole")
    never = made(tmp_path, [python, sea], recipe, "never")
    remove_expert(whole, "law", into=tmp_path / "without")
    assert mixables.bytes_of(tmp_path / "without") == mixables.bytes_of(never)
    add_expert(never, law, into=tmp_path / "joined", **known("law"))
    last = made(tmp_path, [python, sea, law], recipe, "last")
    assert mixables.bytes_of(tmp_path / "joined") == mixables.bytes_of(last)
    remove_expert(tmp_path / "joined", "law", into=tmp_path / "again")
    assert mixables.bytes_of(tmp_path / "again") == mixables.bytes_of(never)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("trains", ["ffn_embeddings", "all"])
def test_parts_that_no_expert_changed_any_more_are_shared_again(tmp_path, trains, tied):
    shape = mixables.SHAPE.model_copy(update={"tied_embeddings": tied})
    seed = mixables.seed(tmp_path, shape=shape)
    plain = [mixables.expert(tmp_path, name, seed=seed) for name in ("python", "sea")]
    law = mixables.expert(tmp_path, "law", trains=trains, seed=seed)
    never = made(tmp_path, plain, {}, "never", seed=seed)
    whole = made(tmp_path, [plain[0], law, plain[1]], {}, "whole", seed=seed)
    assert read_facts(never).owned == ()
    assert read_facts(whole).owned[:2] == ("embeddings", "head")
    remove_expert(whole, "law", into=tmp_path / "without")
    assert mixables.bytes_of(tmp_path / "without") == mixables.bytes_of(never)
    add_expert(never, law, into=tmp_path / "joined", **known("law"))
    assert read_facts(tmp_path / "joined").owned == read_facts(whole).owned
    remove_expert(tmp_path / "joined", "law", into=tmp_path / "again")
    assert mixables.bytes_of(tmp_path / "again") == mixables.bytes_of(never)


VARIANTS: list[dict[str, Any]] = [
    {"trains": "ffn"},
    {"trains": "ffn_embeddings"},
    {"trains": "ffn", "parts": ["o_proj", "norm"]},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@settings(max_examples=6)
@given(
    anchor=st.booleans(),
    first=st.sampled_from(list(mixables.WIDTHS)),
    steps=st.lists(
        st.tuples(st.sampled_from(list(mixables.WIDTHS)), st.integers(0, 2)), max_size=5
    ),
)
def test_however_experts_came_and_went_the_mixture_is_that_of_those_it_has(
    models, anchor, first, steps
):
    recipe = {"anchor": anchor}
    with tempfile.TemporaryDirectory(dir=models) as work:
        place = Path(work).name
        members = {first: mixables.expert(models, first)}
        folder = made(models, list(members.values()), recipe, f"{place}/0")
        for number, (name, variant) in enumerate(steps, 1):
            into = models / place / str(number)
            joining = mixables.expert(models, name, **VARIANTS[variant])
            if name not in members:
                add_expert(folder, joining, into=into, **known(name))
                members[name] = joining
            elif variant == 0 and len(members) > 1:
                remove_expert(folder, name, into=into)
                del members[name]
            else:
                replace_expert(folder, joining, into=into, **known(name))
                members[name] = joining
            folder = into
        expected = made(models, list(members.values()), recipe, f"{place}/expected")
        assert mixables.bytes_of(folder) == mixables.bytes_of(expected)


def test_an_adapter_joins_unless_it_changed_what_the_recipe_shares(tmp_path):
    python = mixables.expert(tmp_path, "python")
    law = mixables.expert(tmp_path, "law", parts=["layers.1.self_attn.v_proj"], is_adapter=True)
    plain = made(tmp_path, [python], {"owned": ["head"]}, "plain")
    with pytest.raises(MixingError, match=r"law: .*changes tensor model.layers.1.self_attn.v_proj"):
        add_expert(plain, law, into=tmp_path / "new", **known("law"))
    auto = made(tmp_path, [python], {}, "auto")
    assert add_expert(auto, law, into=tmp_path / "new", **known("law")).owned == ("v_proj",)


def test_an_expert_alone_can_be_replaced_by_one_that_changed_less(tmp_path):
    alone = made(tmp_path, [mixables.expert(tmp_path, "law", trains="all")], {}, "alone")
    less = mixables.expert(tmp_path, "law")
    replace_expert(alone, less, into=tmp_path / "less", **known("law"))
    expected = made(tmp_path, [less], {}, "expected")
    assert mixables.bytes_of(tmp_path / "less") == mixables.bytes_of(expected)


def test_nothing_of_a_removed_or_replaced_expert_remains(tmp_path):
    experts = [mixables.expert(tmp_path, name, trains="all") for name in mixables.WIDTHS]
    whole = made(tmp_path, experts, PREFIX, "whole")
    remove_expert(whole, "law", into=tmp_path / "without")
    weights = [experts[1].read(name).tobytes() for name in experts[1].forms]
    for path, held in mixables.bytes_of(tmp_path / "without").items():
        assert b"law" not in held or path.endswith((".py", "tokenizer.json")), path
        assert not any(weight in held for weight in weights), path
    other = mixables.expert(tmp_path, "law", parts=["norm"])
    replace_expert(whole, other, into=tmp_path / "replaced", **known("law"))
    held = (tmp_path / "replaced" / "model.safetensors").read_bytes()
    moved = [one.tobytes() for one in map(experts[1].read, other.forms)]
    assert not any(weight in held for weight in moved)
    expected = made(tmp_path, [experts[0], other, experts[2]], PREFIX, "expected")
    assert mixables.bytes_of(tmp_path / "replaced") == mixables.bytes_of(expected)


@pytest.mark.parametrize("change", ["add", "replace"])
def test_every_tensor_of_the_other_experts_stays_as_it_was(tmp_path, change):
    python, law = (mixables.expert(tmp_path, name, trains="all") for name in ("python", "law"))
    whole = made(tmp_path, [python, law], PREFIX, "whole")
    before = read_tensors(whole / "model.safetensors")
    new = mixables.expert(tmp_path, "sea" if change == "add" else "law", parts=["o_proj"])
    verb = add_expert if change == "add" else replace_expert
    facts = verb(whole, new, into=tmp_path / "after", **known(new.name))
    after = read_tensors(tmp_path / "after" / "model.safetensors")
    assert facts.names == (("seed", "python", "law", "sea")[: 4 if change == "add" else 3])
    kept = {name for name in before if ".router." not in name and ".experts.2." not in name}
    assert len(kept) > 20
    for name in kept | (
        {name for name in before if ".experts.2." in name} & {"add": before}.keys()
    ):
        assert np.array_equal(before[name], after[name]), name
    tokens = torch.arange(2, 20)[None]
    for number in range(2):
        logits = []
        for folder in (whole, tmp_path / "after"):
            model = open_mixture(folder)
            with torch.inference_mode():
                gates = model.forced(number, like=tokens)
                logits.append(model(input_ids=tokens, gates=gates).logits)
        assert torch.equal(*logits)


def test_the_anchor_can_be_removed(tmp_path):
    experts = [mixables.expert(tmp_path, name) for name in mixables.WIDTHS]
    anchored = made(tmp_path, experts, PREFIX, "anchored")
    remove_expert(anchored, "seed", into=tmp_path / "without")
    never = made(tmp_path, experts, {}, "never")
    assert mixables.bytes_of(tmp_path / "without") == mixables.bytes_of(never)


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    experts = [mixables.expert(tmp_path, name) for name in ("python", "law")]
    return made(tmp_path, experts, {}, "mixture")


def test_experts_that_cannot_join_or_leave_are_refused_by_name(tmp_path, mixture):
    into = tmp_path / "new"
    law = mixables.expert(tmp_path, "law")
    with pytest.raises(MixingError, match="2 are called 'law'"):
        add_expert(mixture, law, into=into, **known("law"))
    with pytest.raises(MixingError, match=r"'sky', expected one of \['python', 'law'\]"):
        remove_expert(mixture, "sky", into=into)
    sea = mixables.expert(tmp_path, "sea")
    with pytest.raises(MixingError, match="'sea', expected one of"):
        replace_expert(mixture, sea, into=into, **known("sea"))
    with pytest.raises(MixingError, match="counts: none for 'sea'"):
        add_expert(mixture, sea, into=into, statistics=None)
    strange = mixables.expert(tmp_path, "sea", vocabulary="1" * 64)
    with pytest.raises(MixingError, match="sea: its tokenizer has digest"):
        add_expert(mixture, strange, into=into, **known("sea"))
    with pytest.raises(MixingError, match="'seed' is what the seed is called"):
        add_expert(mixture, mixables.seed(tmp_path), into=into, **known("sea"))
    remove_expert(mixture, "law", into=into)
    with pytest.raises(MixingError, match="'python' is the only one"):
        remove_expert(into, "python", into=tmp_path / "none")
    with pytest.raises(MixingError, match="new: is there already"):
        remove_expert(mixture, "law", into=into)


def test_an_expert_that_a_setting_names_or_needs_does_not_leave(tmp_path):
    experts = [mixables.expert(tmp_path, name) for name in ("python", "law")]
    for router, problem in (
        ({"always_on": "law"}, "always_on 'law'"),
        ({"selection": "top_k", "top_k": 2}, "top_k 2: expected at most 1"),
    ):
        folder = made(tmp_path, experts, {"router": router}, problem[:5])
        with pytest.raises(MixingError, match=problem):
            remove_expert(folder, "law", into=tmp_path / "new")


def test_mixtures_in_which_each_expert_is_everywhere_are_to_be_made_again(tmp_path, mixture):
    experts = [mixables.expert(tmp_path, name, trains="all") for name in ("python", "law")]
    recipe = {"shared_from": "average", "owned": ["head"]}
    with pytest.raises(MixingError, match=r"shared_from 'average': .*make the mixture again"):
        remove_expert(made(tmp_path, experts, recipe, "mean"), "law", into=tmp_path / "new")
    tuning = {
        "mixture": "1" * 64,
        "shard": "2" * 64,
        "trains": "router",
        "losses": {},
        "train": {
            "num_steps": 1,
            "schedule_steps": 1,
            "warmup_steps": 0,
            "peak_learning_rate": 1.0,
            "final_learning_rate": 1.0,
            "micro_batch": 1,
            "accumulation": 1,
            "sequence_length": 8,
            "clip_norm": 0.0,
            "rng_seed": 0,
            "compile": False,
        },
        "tokens": 8,
        "train_seconds": 1.0,
        "loss": 2.0,
    }
    facts = json.loads((mixture / "mixture.json").read_bytes())
    (mixture / "mixture.json").write_text(json.dumps({**facts, "tunings": [tuning]}))
    with pytest.raises(MixingError, match=r"trained as one since \(trains 'router'\)"):
        remove_expert(mixture, "law", into=tmp_path / "new")


def test_a_damaged_mixture_is_refused_by_the_name_of_its_file(tmp_path, mixture):
    with pytest.raises(MixingError, match=r"no mixture: mixture.json"):
        remove_expert(tmp_path, "law", into=tmp_path / "new")
    tokenizer = (mixture / "tokenizer.json").read_bytes()
    (mixture / "tokenizer.json").write_bytes(tokenizer + b" ")
    with pytest.raises(MixingError, match=r"tokenizer.json: digest \w+, expected"):
        remove_expert(mixture, "law", into=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (mixture / "tokenizer.json").write_bytes(tokenizer)
    tensors = dict(read_tensors(mixture / "model.safetensors"))
    gone = tensors.pop("model.norm.weight")
    write_tensors(mixture / "model.safetensors", {**tensors, "model.norms.weight": gone})
    with pytest.raises(ValueError, match=r"tensor 'model.norm.weight' is missing"):
        remove_expert(mixture, "law", into=tmp_path / "new")
    (mixture / "mixture.json").write_text("{}")
    with pytest.raises(MixingError, match=r"mixture.json: recipe: Field required"):
        remove_expert(mixture, "law", into=tmp_path / "new")


def test_of_a_mixture_whose_files_say_different_things_nothing_is_made(tmp_path, mixture):
    config = json.loads((mixture / "config.json").read_bytes())
    edited = {**config, "prefix_decay": 0.5}
    (mixture / "config.json").write_text(json.dumps(edited))
    with pytest.raises(MixingError, match=r"json: router.decay 0.98, but config.json.* 0.5"):
        remove_expert(mixture, "law", into=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_is_read_and_written_is_told_of_as_it_is_done(tmp_path):
    told: dict[str, list[tuple[int, int]]] = {}
    mixture = made(tmp_path, [mixables.expert(tmp_path, "python")], RECIPES["prefix"], "whole")
    law = mixables.expert(tmp_path, "law")
    add_expert(
        mixture,
        law,
        statistics=mixables.statistics("law"),
        into=tmp_path / "wider",
        stage=lambda what: lambda done, total: told.setdefault(what, []).append((done, total)),
    )
    assert [*told] == ["reading the mixture", "reading law", "writing the mixture"]
    for counts in told.values():
        assert [done for done, _ in counts] == sorted(done for done, _ in counts)
        assert counts[-1][0] == counts[-1][1]


def test_statistics_that_are_missing_are_named_with_their_file(tmp_path):
    experts = [mixables.expert(tmp_path, name) for name in ("python", "law")]
    mixture = made(tmp_path, experts, RECIPES["prefix"], "whole")
    path = mixture / "statistics" / "law.safetensors"
    path.unlink()
    with pytest.raises(MixingError, match="put it back from a copy") as raised:
        remove_expert(mixture, "python", into=tmp_path / "less")
    assert str(raised.value).startswith(f"{path}: is missing")
    remove_expert(mixture, "law", into=tmp_path / "without")


@pytest.mark.parametrize("file", ["model.safetensors", "statistics/law.safetensors"])
def test_a_file_that_is_cut_off_is_named_with_its_folder(tmp_path, file):
    experts = [mixables.expert(tmp_path, name) for name in ("python", "law")]
    mixture = made(tmp_path, experts, RECIPES["prefix"], "whole")
    with (mixture / file).open("r+b") as opened:
        opened.truncate(1000)
    with pytest.raises(MixingError) as raised:
        remove_expert(mixture, "python", into=tmp_path / "less")
    assert str(raised.value).startswith(f"{mixture}: ")
    assert Path(file).name in str(raised.value)
