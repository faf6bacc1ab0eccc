"""A spec that contradicts itself cannot be built, and the message names both values."""

import pytest
from pydantic import ValidationError

from protocol.assignments import FINAL, LIVE, TRANSITIONS, AssignmentEvent, AssignmentState
from protocol.errors import HTTP_STATUS, ErrorCode
from protocol.manifests import CheckpointManifest, files_of
from protocol.specs import ExpertSpec, Lora, ModelShape, TrainSpec

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


LORA = Lora(rank=4, alpha=8.0)
EXPERT = SEED.model_copy(update={"kind": "expert", "nested_widths": (), "parent": "1" * 64})


def test_a_spec_without_lora_has_the_digest_of_before_there_was_any():
    assert SEED.digest == "47137a432349e8143646ee6d8488f60cf89dbc1eaaa1f90822e15526d0806f9f"
    adapted = EXPERT.model_copy(update={"trains": "lora", "lora": LORA})
    assert ExpertSpec.model_validate_json(adapted.model_dump_json()) == adapted
    other = adapted.model_copy(update={"lora": Lora(rank=4, alpha=4.0)})
    assert len({EXPERT.digest, adapted.digest, other.digest}) == 3


def test_an_expert_that_trains_adapters_says_which():
    with pytest.raises(ValidationError, match="lora None: expected one exactly where"):
        ExpertSpec.model_validate(dict(EXPERT) | {"trains": "lora"})
    large = {"rank": 33, "alpha": 8.0}
    with pytest.raises(ValidationError, match="rank 33: expected at most 32"):
        ExpertSpec.model_validate(dict(EXPERT) | {"trains": "lora", "lora": large})
    for projections in ((), ("v_proj", "q_proj"), ("q_proj", "q_proj"), ("lm_head",)):
        with pytest.raises(ValidationError, match="projections"):
            Lora(rank=4, alpha=8.0, projections=projections)


def test_a_checkpoints_files_follow_from_its_spec():
    adapted = EXPERT.model_copy(update={"trains": "lora", "lora": LORA})
    assert files_of("training", EXPERT)[0] == "model.safetensors"
    assert files_of("training", adapted)[0] == "adapter.safetensors"
    assert files_of("expert", adapted) == ("model.safetensors", "adapter.safetensors")
    blob = {"digest": "0" * 64, "size": 9}
    manifest = {
        "kind": "expert",
        "spec": adapted.digest,
        "worker": "12D3KooW" + "A" * 44,
        "step": 10,
        "loss": 1.0,
        "files": [{"name": name, "blob": blob} for name in files_of("expert", adapted)],
    }
    assert CheckpointManifest.model_validate(manifest).blob("adapter.safetensors").size == 9
    with pytest.raises(ValidationError, match="or with LoRA"):
        CheckpointManifest.model_validate({**manifest, "files": manifest["files"][1:]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parent": "1" * 64}, "of kind .seed., which has none"),
        ({"kind": "expert"}, "needs one, got none"),
        ({"kind": "expert", "parent": "1" * 64}, "only seeds are nested"),
        ({"trains": "ffn"}, "trains all of its tensors"),
        ({"trains": "lora", "lora": {"rank": 2, "alpha": 4.0}}, "trains all of its tensors"),
        ({"lora": {"rank": 2, "alpha": 4.0}}, "lora rank=2.*exactly where trains is 'lora'"),
        ({"lora": {"rank": 0, "alpha": 4.0}}, "greater than or equal to 1"),
        ({"lora": {"rank": 2, "alpha": 0.0}}, "greater than 0"),
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
