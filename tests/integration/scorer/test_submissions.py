"""Every way in which a submission can fail, each with its decision and its coarse reason."""

import shutil

import numpy as np
import pytest

from coordinator.ledger import queries
from protocol.assignments import AssignmentState
from shared.likelihood import label_log_likelihoods
from shared.model import load
from shared.shards import Shard
from shared.tensorfiles import read_tensors, write_tensors


def changed(file, target, change):
    """A copy of a file of weights, its tensors changed by `change(tensors)`."""
    tensors = {name: np.array(tensor) for name, tensor in read_tensors(file).items()}
    change(tensors)
    write_tensors(target, tensors)
    return target


def test_a_checkpoint_of_another_shape_is_rejected(tiny):
    tiny.settle()
    seed = tiny.rows("seed")[0]
    narrow = seed.spec.shape.model_copy(update={"ffn_width": 48})
    file = tiny.folders.root / "narrow.safetensors"
    model = load(tiny.train(seed.spec), narrow)
    write_tensors(file, {name: p.detach().numpy() for name, p in model.named_parameters()})
    state, reason = tiny.decision_on(seed, file)
    assert state is AssignmentState.OPEN
    assert reason == "rejected: its file does not hold what its spec says"


def test_weights_that_are_not_finite_are_rejected(tiny):
    tiny.settle()
    seed = tiny.rows("seed")[0]

    def poison(tensors):
        tensors["model.norm.weight"][3] = np.nan

    file = changed(tiny.train(seed.spec), tiny.folders.root / "nan.safetensors", poison)
    state, reason = tiny.decision_on(seed, file)
    assert state is AssignmentState.OPEN
    assert reason == "rejected: its file does not hold what its spec says"


def test_finite_weights_that_overflow_are_rejected_and_the_next_worker_may_try(tiny):
    tiny.settle()
    seed = tiny.rows("seed")[0]

    def overflow(tensors):
        tensors["lm_head.weight"][:] = np.where(tensors["lm_head.weight"] > 0, 3e38, -3e38)

    file = changed(tiny.train(seed.spec), tiny.folders.root / "huge.safetensors", overflow)
    state, reason = tiny.decision_on(seed, file)
    assert state is AssignmentState.OPEN
    assert reason == "rejected: worse than a unigram model on held-out text"
    state, _ = tiny.decision_on(seed, tiny.train(seed.spec), worker=1)
    assert state is AssignmentState.ACCEPTED


def test_a_submission_that_vanishes_while_it_is_measured_is_rejected(tiny):
    tiny.settle()
    seed = tiny.rows("seed")[0]
    digest = tiny.store.add_file(tiny.train(seed.spec)).digest
    tiny.hand_in(seed)

    def now():
        tiny.store.delete(digest)
        return tiny.time

    tiny.new_scorer(now=now).step()
    assert tiny.row(seed.assignment).reason == "rejected: could not be measured"


def test_a_seed_that_is_no_better_than_a_unigram_model_is_rejected(tiny):
    tiny.settle()
    seed = tiny.rows("seed")[0]

    def scramble(tensors):
        noise = np.random.default_rng(0)
        for tensor in tensors.values():
            tensor += noise.normal(0.0, 0.5, tensor.shape).astype(np.float32)

    file = changed(tiny.train(seed.spec), tiny.folders.root / "noise.safetensors", scramble)
    state, reason = tiny.decision_on(seed, file)
    assert state is AssignmentState.OPEN
    assert reason == "rejected: worse than a unigram model on held-out text"


def test_a_nested_seed_that_is_good_at_its_full_width_only_is_rejected(tiny):
    tiny.settle()
    seed = tiny.rows("seed")[0]

    def spoil_prefix(tensors):
        # The last features are the first ones' again, and take back what was added to those.
        for name, tensor in tensors.items():
            if "down_proj" in name:
                tensor[:, :16] += 10.0
                tensor[:, 48:] = -10.0
            elif "mlp" in name:
                tensor[48:] = tensor[:16]

    file = changed(tiny.train(seed.spec), tiny.folders.root / "prefix.safetensors", spoil_prefix)

    assert mean_on_dev(tiny, file, seed.spec.shape) > -2.5
    state, reason = tiny.decision_on(seed, file)
    assert state is AssignmentState.OPEN
    assert reason == "rejected: worse than a unigram model on held-out text"


def mean_on_dev(tiny, file, shape):
    manifest = tiny.prepared.shard("general", "dev")
    path = tiny.store.path(manifest.blob.digest)
    shard = Shard.read(path, vocab_size=manifest.vocab_size)
    return label_log_likelihoods(load(file, shape), shard, length=32, batch=16).mean()


def test_a_copy_of_the_parent_is_rejected_at_full_and_at_narrower_width(tiny):
    tiny.to_experts()
    for row in tiny.rows("expert", "cooking"):
        parent, _ = tiny.parent_of(row.spec)
        model = load(parent, row.spec.shape)
        file = tiny.folders.root / f"copy-{row.spec.shape.ffn_width}.safetensors"
        write_tensors(file, {name: p.detach().numpy() for name, p in model.named_parameters()})
        state, reason = tiny.decision_on(row, file)
        assert state is AssignmentState.OPEN
        assert reason == "rejected: equal to a known checkpoint"


def test_a_copy_of_another_accepted_expert_is_rejected(tiny):
    tiny.to_experts()
    cooking, drama = (
        next(row for row in tiny.rows("expert", domain) if "MHo-IHo" in row.schemes)
        for domain in ("cooking", "drama")
    )
    tiny.hand_in(cooking)
    tiny.settle()
    state, reason = tiny.decision_on(drama, tiny.train(cooking.spec), worker=1)
    assert state is AssignmentState.OPEN
    assert reason == "rejected: equal to a known checkpoint"


def test_a_changed_frozen_tensor_is_rejected(tiny):
    tiny.to_experts()
    row = tiny.rows("expert")[0]

    def touch_attention(tensors):
        tensors["model.layers.1.self_attn.q_proj.weight"][0, 0] += 1e-6

    file = changed(tiny.train(row.spec), tiny.folders.root / "thawed.safetensors", touch_attention)
    state, reason = tiny.decision_on(row, file)
    assert state is AssignmentState.OPEN
    assert reason == "rejected: changed a tensor that its spec freezes"


def worsen(tensors):
    noise = np.random.default_rng(0)
    for name, tensor in tensors.items():
        if "mlp" in name:
            tensor += noise.normal(0.0, 0.5, tensor.shape).astype(np.float32)


def test_an_expert_worse_than_its_parent_is_rejected_and_another_worker_may_try(tiny):
    tiny.to_experts()
    row = tiny.rows("expert")[0]
    file = changed(tiny.train(row.spec), tiny.folders.root / "worse.safetensors", worsen)
    digest = tiny.store.add_file(file).digest
    state, reason = tiny.decision_on(row, file)
    assert state is AssignmentState.OPEN
    assert reason == "rejected: worse than its parent on held-out text"
    assert not tiny.store.has(digest), "what was rejected is not kept"
    assert not list((tiny.folders.sealed / "likelihoods").glob(f"{digest}-*"))
    state, _ = tiny.decision_on(row, tiny.train(row.spec), worker=1)
    assert state is AssignmentState.ACCEPTED


@pytest.mark.parametrize("purpose", ["dense trial", "probe"])
def test_what_is_only_measured_is_accepted_however_bad_it_is(tiny, purpose):
    tiny.to_experts()
    row = tiny.rows("expert")[0]
    train = row.spec.train.model_copy(update={"clip_norm": 0.5})
    trial = row.spec.model_copy(update={"train": train})
    with tiny.ledger.begin() as connection:
        queries.add_assignment(
            connection, trial, shard=row.shard, schemes=(purpose,), now=tiny.now()
        )
    added = next(one for one in tiny.rows("expert") if one.spec == trial)
    file = changed(tiny.train(row.spec), tiny.folders.root / "worse.safetensors", worsen)
    state, reason = tiny.decision_on(added, file)
    assert state is AssignmentState.ACCEPTED
    assert reason == "accepted: measured, whatever it is worth"


def test_an_expert_that_hardly_differs_from_its_parent_is_inconclusive(tiny):
    tiny.to_experts()
    row = tiny.rows("expert")[0]
    parent, _ = tiny.parent_of(row.spec)
    model = load(parent, row.spec.shape)
    tensors = {name: p.detach().numpy() for name, p in model.named_parameters()}
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += np.float32(1e-6)
    file = tiny.folders.root / "same.safetensors"
    write_tensors(file, tensors)
    state, reason = tiny.decision_on(row, file)
    assert state is AssignmentState.OPEN
    assert reason.startswith("inconclusive: not told apart from its parent")


def test_a_blob_damaged_on_disk_is_rejected(tiny):
    tiny.settle()
    seed = tiny.rows("seed")[0]
    file = tiny.folders.root / "copy.safetensors"
    shutil.copy(tiny.train(seed.spec), file)
    tiny.hand_in(seed, file)
    digest = tiny.store.add_file(file).digest
    path = tiny.store.path(digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    tiny.settle()
    assert tiny.row(seed.assignment).reason == "rejected: its file is damaged"
