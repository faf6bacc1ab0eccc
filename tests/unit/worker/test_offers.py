"""A worker follows no offer that its spec does not explain."""

import pytest

from protocol.blobs import BlobRef
from protocol.messages import Offer, Parent
from protocol.specs import Lora
from worker.offers import problem_of


@pytest.fixture
def offer(make):
    seed = make.spec()
    spec = make.spec(parent=seed.digest)
    return Offer(
        assignment="a" + "0" * 16,
        fencing=1,
        expires_in=10.0,
        spec=spec,
        shard=make.blob("shard"),
        parent=Parent(shape=seed.shape, manifest=make.manifest(seed, "12D3KooW" + "A" * 44)),
        resume=make.manifest(spec, "12D3KooW" + "B" * 44, step=3),
        checkpoint_seconds=10.0,
        reason="",
    )


def larger(manifest, name, size):
    files = tuple(
        file.model_copy(update={"blob": BlobRef(digest=file.blob.digest, size=size)})
        if file.name == name
        else file
        for file in manifest.files
    )
    return manifest.model_copy(update={"files": files})


def test_an_honest_offer_is_followed(make, offer):
    assert problem_of(offer, make.capability()) is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_file_larger_than_its_shape_explains_is_not_downloaded(make, offer, name):
    inflated = offer.model_copy(update={"resume": larger(offer.resume, name, 10**9)})
    assert f"resume {name}: 1000000000 bytes" in problem_of(inflated, make.capability())


def test_an_inflated_parent_is_not_downloaded(make, offer):
    manifest = larger(offer.parent.manifest, "model.safetensors", 10**9)
    inflated = offer.model_copy(
        update={"parent": offer.parent.model_copy(update={"manifest": manifest})}
    )
    assert "parent model.safetensors" in problem_of(inflated, make.capability())


def with_lora(make, offer, width):
    lora = {"trains": "lora", "lora": Lora(rank=4, alpha=8.0)}
    shape = offer.spec.shape.model_copy(update={"ffn_width": width})
    return offer.model_copy(
        update={"spec": offer.spec.model_copy(update={**lora, "shape": shape}), "resume": None}
    )


def test_an_adapter_is_trained_on_a_parent_of_its_own_width(make, offer):
    assert problem_of(with_lora(make, offer, 64), make.capability()) is None
    narrower = with_lora(make, offer, 48)
    assert "FFN 64, expected 48, as an adapter" in problem_of(narrower, make.capability())


def test_a_resumed_adapter_comes_without_a_model(make, offer):
    adapted = with_lora(make, offer, 64)
    resume = offer.resume.model_copy(update={"spec": adapted.spec.digest})
    words = problem_of(adapted.model_copy(update={"resume": resume}), make.capability())
    assert "resume: files ('model.safetensors'" in words
    first, *others = resume.files
    files = (first.model_copy(update={"name": "adapter.safetensors"}), *others)
    small = adapted.model_copy(update={"resume": resume.model_copy(update={"files": files})})
    assert problem_of(small, make.capability()) is None
    inflated = larger(small.resume, "adapter.safetensors", 10**8)
    words = problem_of(adapted.model_copy(update={"resume": inflated}), make.capability())
    assert "resume adapter.safetensors: 100000000 bytes" in words


def test_what_does_not_fit_on_the_disk_is_not_taken(make, offer):
    capability = make.capability().model_copy(update={"free_disk_bytes": 1000})
    assert "needs 4 MB of disk, 0 MB are free" in problem_of(offer, capability)
    huge = offer.model_copy(update={"shard": BlobRef(digest="0" * 64, size=2**37)})
    assert " of disk, " in problem_of(huge, make.capability())


def test_a_checkpoint_of_another_spec_is_not_resumed(make, offer):
    other = make.manifest(make.spec(), "12D3KooW" + "B" * 44, step=3)
    assert "resume" in problem_of(offer.model_copy(update={"resume": other}), make.capability())
