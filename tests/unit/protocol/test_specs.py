"""A spec that contradicts itself cannot be built, and the message names both values."""

import pytest
from pydantic import ValidationError

from protocol.assignments import FINAL, LIVE, TRANSITIONS, AssignmentEvent, AssignmentState
from protocol.errors import HTTP_STATUS, ErrorCode
from protocol.manifests import CheckpointManifest
from protocol.specs import ExpertSpec, ModelShape, TrainSpec

SHAPE = ModelShape(
    vocab_size=512, hidden_size=32, num_layers=2, num_heads=2, ffn_width=64, context_length=64
)
TRAIN = TrainSpec(
    num_steps=10,
    schedule_steps=20,
    warmup_steps=2,
    peak_learning_rate=1e-3,
    final_learning_rate=1e-4,
    micro_batch=2,
    accumulation=2,
    sequence_length=32,
    clip_norm=1.0,
    rng_seed=0,
    compile=False,
)
SEED = ExpertSpec(
    kind="seed",
    domain="general",
    shape=SHAPE,
    nested_widths=(32, 48, 64),
    train_shard="0" * 64,
    parent=None,
    trains="all",
    train=TRAIN,
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_steps": 30}, "num_steps 30.*schedule_steps 20"),
        ({"warmup_steps": 21}, "warmup_steps 21.*schedule_steps 20"),
        ({"final_learning_rate": 1e-2}, "final_learning_rate 0.01.*0.001"),
        ({"peak_learning_rate": 0.0}, "greater than 0"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(change, words):
    with pytest.raises(ValidationError, match=words):
        TrainSpec.model_validate({**TRAIN.model_dump(), **change})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parent": "1" * 64}, "a seed has none"),
        ({"kind": "expert"}, "an expert branches from one"),
        ({"kind": "expert", "parent": "1" * 64}, "only seeds are nested"),
        ({"trains": "ffn"}, "a seed trains all"),
        ({"nested_widths": (48, 32, 64)}, "ascending"),
        ({"nested_widths": (32, 48)}, "ending in ffn_width 64"),
    ],
)
def test_a_spec_whose_kind_does_not_fit_is_refused(change, words):
    with pytest.raises(ValidationError, match=words):
        ExpertSpec.model_validate({**SEED.model_dump(), **change})


def test_the_digest_of_a_spec_changes_with_every_field():
    other = ExpertSpec.model_validate(
        {**SEED.model_dump(), "train": {**TRAIN.model_dump(), "rng_seed": 1}}
    )
    assert other.digest != SEED.digest
    assert ExpertSpec.model_validate_json(SEED.model_dump_json()).digest == SEED.digest


def test_tokens_per_step_count_labels_of_all_micro_batches():
    assert TRAIN.tokens_per_step == 2 * 2 * 32


def test_only_the_operator_leads_out_of_failed_and_cancelled_and_nobody_out_of_accepted():
    ways_out = {(state, event) for state, event in TRANSITIONS if state in FINAL}
    assert ways_out == {
        (AssignmentState.FAILED, AssignmentEvent.RETRY),
        (AssignmentState.CANCELLED, AssignmentEvent.RETRY),
    }


def test_what_is_held_can_expire():
    for state in LIVE:
        assert TRANSITIONS[(state, AssignmentEvent.EXPIRE)] is AssignmentState.OPEN


def test_every_error_code_has_an_http_status():
    assert set(HTTP_STATUS) == set(ErrorCode)


@pytest.mark.parametrize("name", ["../../etc/passwd", "model.bin", "/model.safetensors"])
def test_a_manifest_cannot_name_a_file_outside_its_folder(name):
    blob = {"digest": "0" * 64, "size": 1}
    with pytest.raises(ValidationError, match="files"):
        CheckpointManifest.model_validate(
            {
                "kind": "expert",
                "spec": "0" * 64,
                "worker": "12D3KooW" + "A" * 44,
                "step": 1,
                "loss": None,
                "files": [{"name": name, "blob": blob}],
            }
        )
