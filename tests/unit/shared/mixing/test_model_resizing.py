"""`resize_token_embeddings`: of what all experts share, and of what each owns."""

import pytest
import torch

from shared.mixing.hub.modeling_hdee_moe import HdeeMoeForCausalLM

KINDS = [
    {"owned": ["embeddings", "head"], "prefix_pairs": 16},
    {"owned": ["embeddings", "head"], "tie_word_embeddings": True},
    {"owned": ["head"], "prefix_pairs": 16},
    {"tie_word_embeddings": True},
    {"router": "linear"},
]


@pytest.mark.parametrize("changes", KINDS)
def test_more_tokens_change_nothing_of_the_old_ones(tiny_mixture, tokens, changes) -> None:
    model = tiny_mixture(**changes)
    ids = tokens(2, 9)
    with torch.no_grad():
        before, logits = model.model(input_ids=ids), model(input_ids=ids).logits
        model.resize_token_embeddings(60)
        after, more = model.model(input_ids=ids), model(input_ids=ids).logits
    assert torch.equal(after.last_hidden_state, before.last_hidden_state)
    assert torch.equal(after.decisions[0][0], before.decisions[0][0])
    assert more.shape == (2, 9, 60)
    if "head" not in model.config.owned:  # owned heads mix probabilities, over all tokens
        assert torch.allclose(more[..., :48], logits, atol=1e-6)


@pytest.mark.parametrize("changes", KINDS)
@pytest.mark.parametrize("size", [40, 60])
def test_a_resized_model_is_saved_and_loaded_and_generates(
    tiny_mixture, tokens, tmp_path, changes, size
) -> None:
    model = tiny_mixture(**changes)
    model.resize_token_embeddings(size)
    model.save_pretrained(tmp_path)
    loaded = HdeeMoeForCausalLM.from_pretrained(tmp_path)
    ids = torch.cat([tokens(2, 9).clamp(max=size - 1), torch.full((2, 1), size - 1)], dim=1)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert loaded.config.vocab_size == size
    made = loaded.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert made.shape == (2, 13)
    loss = loaded.train()(input_ids=ids, labels=ids).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_new_tokens_say_nothing_of_any_domain(tiny_mixture, tokens) -> None:
    model = tiny_mixture(prefix_pairs=16, prefix_saturation=0.0, prefix_decay=1.0)
    model.resize_token_embeddings(60)
    ids = tokens(1, 9)
    more = torch.cat([ids, torch.full((1, 1), 55)], dim=1)
    router = model.model.router
    router.log_likelihoods[60:] = 0
    with torch.no_grad():
        before, after = (model(input_ids=one).expert_probabilities for one in (ids, more))
    assert torch.allclose(after[:, -1], before[:, -1], atol=1e-6)


def test_frozen_embeddings_stay_frozen_and_no_size_changes_nothing(tiny_mixture) -> None:
    model = tiny_mixture(owned=["embeddings", "head"])
    model.requires_grad_(False)
    model.resize_token_embeddings()
    assert model.config.vocab_size == 48
    model.resize_token_embeddings(pad_to_multiple_of=64)
    assert model.config.vocab_size == 64
    assert model.lm_head.experts[2].out_features == 64
    assert not any(parameter.requires_grad for parameter in model.parameters())
