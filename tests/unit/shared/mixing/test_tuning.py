"""What was trained is put into a new mixture: whole or not at all, or refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import mixables
import numpy as np
import pytest
import torch
import tunables
from tunables import trained

from protocol.digests import PIECE_BYTES
from shared.mixing import tuning
from shared.mixing.facts import read_facts
from shared.mixing.ingredients import MixingError
from shared.mixing.opening import mixture_tensors, open_mixture, read_config
from shared.mixing.tuning import apply_tuning, is_trained
from shared.tensorfiles import TensorFileError, read_tensors, write_tensors
from shared.training.assignment import MixtureTrains

ROUTER = "model.layers.0.mlp.router.weight"


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    return tunables.mixture(tmp_path)


@pytest.mark.parametrize("trains", ["router", "router_embeddings", "router_attention", "all"])
def test_the_new_mixture_is_the_old_one_with_what_was_trained(
    mixture: Path, trains: MixtureTrains
) -> None:
    source, into = trained(mixture, trains=trains), mixture.with_name("new")
    before = mixables.bytes_of(mixture)
    facts = apply_tuning(mixture, source, into)
    assert mixables.bytes_of(mixture) == before
    after = mixables.bytes_of(into)
    assert after.keys() == before.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"model.safetensors", "mixture.json"}
    old, new = (read_tensors(folder / "model.safetensors") for folder in (mixture, into))
    replaced = read_tensors(source / "trained.safetensors")
    assert list(new) == list(old)
    for name, tensor in new.items():
        assert np.array_equal(tensor, replaced.get(name, old[name])), name
    assert read_facts(into) == facts
    assert [one.model_dump() for one in facts.tunings] == [
        json.loads((source / "trained.json").read_bytes())
    ]
    assert facts.model_copy(update={"tunings": ()}) == read_facts(mixture)
    assert not list(mixture.parent.glob(".new*"))


def test_a_tuned_mixture_opens_with_what_was_trained_and_can_be_trained_again(
    mixture: Path,
) -> None:
    once, twice = mixture.with_name("once"), mixture.with_name("twice")
    apply_tuning(mixture, trained(mixture), once)
    found = open_mixture(once).get_parameter(ROUTER)
    assert torch.equal(
        found,
        torch.from_numpy(
            read_tensors(mixture.parent / "trained" / "trained.safetensors")[ROUTER].copy()
        ),
    )
    again = trained(once, trains="all", name="again")
    assert [one.trains for one in apply_tuning(once, again, twice).tunings] == ["router", "all"]
    with pytest.raises(MixingError, match="it was trained from other weights"):
        apply_tuning(mixture, again, mixture.with_name("third"))


def test_each_kind_of_training_reaches_the_tensors_of_its_parts(tmp_path: Path) -> None:
    recipe = {"router": {"kind": "prefix"}, "owned": ["embeddings", "head", "norms", "q_proj"]}
    names = list(mixture_tensors(read_config(tunables.mixture(tmp_path, recipe, trains="all"))))
    found = {
        trains: {name for name in names if is_trained(trains, name)}
        for trains in ("router", "router_embeddings", "router_attention", "all")
    }
    assert found["router"] == set()
    assert found["router_embeddings"] == {
        f"{part}.experts.{expert}.weight"
        for part in ("model.embed_tokens", "lm_head")
        for expert in range(3)
    }
    assert all("self_attn." in name for name in found["router_attention"])
    assert len(found["router_attention"]) == 2 * (3 + 3)
    assert found["all"] == set(names) - {"model.router.log_likelihoods"}


def change(folder: Path, name: str, edit: Any) -> None:
    """Edits the trained tensors: `edit` gets all of them."""
    path = folder / name
    tensors = {key: tensor.copy() for key, tensor in read_tensors(path).items()}
    edit(tensors)
    write_tensors(path, tensors)


def say(folder: Path, **changes: Any) -> None:
    path = folder / "trained.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


@pytest.mark.parametrize(
    ("damage", "error", "match"),
    [
        (lambda t: t.pop(ROUTER), TensorFileError, "router.weight' is missing"),
        (
            lambda t: t.update({"lm_head.weight": np.zeros(3, np.float32)}),
            TensorFileError,
            "'lm_head.weight' is not expected",
        ),
        (
            lambda t: t.update({ROUTER: t[ROUTER].T.copy()}),
            TensorFileError,
            r"router.weight is \('F32', \(16, 3\)\), expected \('F32', \(3, 16\)\)",
        ),
        (lambda t: t[ROUTER].fill(np.nan), TensorFileError, "router.weight has NaN"),
    ],
)
def test_trained_tensors_that_do_not_fit_are_refused_by_name(
    mixture: Path, damage: Any, error: type[Exception], match: str
) -> None:
    source = trained(mixture)
    change(source, "trained.safetensors", damage)
    with pytest.raises(error, match=match):
        apply_tuning(mixture, source, mixture.with_name("new"))
    assert not [path for path in mixture.parent.iterdir() if "new" in path.name]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"mixture": "2" * 64}, "it was trained from other weights"),
        ({"mixture": "2"}, "mixture"),
        ({"trains": "heads"}, "trains"),
        ({"tokens": 0}, "tokens"),
        ({"secret": 1}, "secret"),
        ({"shard": "3" * PIECE_BYTES}, "at most 65536 bytes"),
    ],
)
def test_a_wrong_field_of_what_the_trainer_says_is_refused_by_name(
    mixture: Path, changes: dict[str, Any], match: str
) -> None:
    source = trained(mixture)
    say(source, **changes)
    with pytest.raises(MixingError, match=match):
        apply_tuning(mixture, source, mixture.with_name("new"))


def test_a_folder_that_is_there_is_not_touched(mixture: Path) -> None:
    into = mixture.with_name("new")
    into.mkdir()
    with pytest.raises(MixingError, match="is there already"):
        apply_tuning(mixture, trained(mixture), into)
    assert not list(into.iterdir())


def test_a_training_that_did_not_finish_is_none(mixture: Path) -> None:
    source = trained(mixture)
    (source / "trained.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"trained\.json"):
        apply_tuning(mixture, source, mixture.with_name("new"))


def test_nothing_is_left_of_a_mixture_that_could_not_be_written(
    mixture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, into = trained(mixture), mixture.with_name("new")

    def full(_folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(tuning, "sync_tree", full)
        with pytest.raises(OSError, match="No space left"):
            apply_tuning(mixture, source, into)
    assert not [path for path in mixture.parent.iterdir() if "new" in path.name]
    shutil.copytree(mixture, mixture.with_name(".new.writing"))
    apply_tuning(mixture, source, into)
    assert read_facts(into).tunings
