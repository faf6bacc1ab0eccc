"""Text from a posterior ensemble: the distribution of `shared.ensemble`, token by token."""

import numpy as np
import pytest
import torch

from protocol.specs import ModelShape
from shared import model as models
from shared.ensemble import posterior_ensemble
from shared.mixing.generation import (
    GenerationError,
    PosteriorEnsemble,
    Sampling,
    choose,
    generate,
)

torch.set_num_threads(1)

SHAPE = ModelShape(
    vocab_size=32, hidden_size=16, num_layers=2, num_heads=2, ffn_width=24, context_length=24
)


@pytest.fixture(scope="module")
def members():
    built = []
    for rng_seed, width in enumerate((16, 24, 32)):
        model = models.build(SHAPE.model_copy(update={"ffn_width": width}), rng_seed=rng_seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(15)
        built.append(model)
    return built


@pytest.fixture(scope="module")
def text():
    return torch.from_numpy(np.random.default_rng(0).integers(1, 32, (2, 12)))


def label_log_likelihoods(members, row):
    with torch.inference_mode():
        logits = torch.stack([model(input_ids=row[None]).logits[0, :-1] for model in members])
    log_p = torch.log_softmax(logits.double(), dim=-1)
    return log_p.gather(2, row[1:].expand(len(members), -1)[:, :, None])[:, :, 0].numpy()


@pytest.mark.parametrize("log_prior", [None, [0.0, -3.0, -1.0], [0.0, -np.inf, -1.0]])
def test_each_token_has_the_likelihood_that_the_posterior_ensemble_gives_it(
    members, text, log_prior
):
    ensemble = PosteriorEnsemble(members, log_prior=log_prior)
    found = [ensemble.read(text[:, :1])]
    found += [ensemble.read(text[:, step : step + 1]) for step in range(1, 11)]
    for row in range(2):
        l = label_log_likelihoods(members, text[row])  # noqa: E741
        normalised = log_prior and np.asarray(log_prior) - np.logaddexp.reduce(log_prior)
        expected = posterior_ensemble(l, [0], normalised)
        said = [float(log_p[row, text[row, step + 1]]) for step, log_p in enumerate(found)]
        assert said == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_prompt_read_at_once_weighs_like_one_read_in_parts(members, text):
    whole, parts = PosteriorEnsemble(members), PosteriorEnsemble(members)
    expected = whole.read(text)
    parts.read(text[:, :5])
    parts.read(text[:, 5:6])
    found = parts.read(text[:, 6:])
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.allclose(parts.log_weights, whole.log_weights, atol=1e-4)
    assert torch.allclose(whole.posterior.sum(dim=0), torch.ones(2, dtype=torch.float64))
    assert whole.log_weights.dtype == torch.float64


def test_one_member_alone_generates_what_it_generates_without_an_ensemble(members, text):
    model = members[1]
    with torch.inference_mode():
        expected = model.generate(
            text, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    found = generate(PosteriorEnsemble([model]), text, max_new_tokens=8)
    assert found.tolist() == expected.tolist()


def test_equal_members_are_one_member(members, text):
    alone = generate(PosteriorEnsemble([members[0]]), text, max_new_tokens=6)
    twice = generate(PosteriorEnsemble([members[0]] * 3), text, max_new_tokens=6)
    assert alone.tolist() == twice.tolist()


def test_rows_do_not_depend_on_each_other(members, text):
    together = generate(PosteriorEnsemble(members), text, max_new_tokens=6)
    for row in range(2):
        alone = generate(PosteriorEnsemble(members), text[row : row + 1], max_new_tokens=6)
        assert alone[0].tolist() == together[row].tolist()


def test_the_same_rng_seed_draws_the_same_text(members, text):
    sampling = Sampling(temperature=1.0, rng_seed=7)

    def drawn(sampling):
        ensemble = PosteriorEnsemble(members)
        return generate(ensemble, text, max_new_tokens=8, sampling=sampling).tolist()

    assert drawn(sampling) == drawn(sampling)
    assert drawn(sampling) != drawn(Sampling(temperature=1.0, rng_seed=8))


def test_draws_follow_the_distribution_and_stay_within_top_p():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    rows = p.log().expand(4000, -1)
    generator = torch.Generator().manual_seed(0)
    drawn = choose(rows, Sampling(temperature=1.0), generator)
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert shares.tolist() == pytest.approx(p.tolist(), abs=0.03)
    within = choose(rows, Sampling(temperature=1.0, top_p=0.6), generator)
    assert set(within.tolist()) == {0, 1}
    cold = choose(rows, Sampling(temperature=0.05), generator)
    assert set(cold.tolist()) == {0}
    # However small the mass, the most likely token is in it.
    assert set(choose(rows, Sampling(temperature=2.0, top_p=1e-9), generator).tolist()) == {0}


def test_a_row_that_has_ended_is_filled_and_generation_stops_with_the_last(members, text):
    free = generate(PosteriorEnsemble(members), text, max_new_tokens=6)
    eos_id = int(free[0, 13])
    found = generate(PosteriorEnsemble(members), text, max_new_tokens=6, eos_id=eos_id)
    for row in range(2):
        new = free[row, 12:].tolist()
        length = new.index(eos_id) + 1 if eos_id in new else len(new)
        assert found[row, 12 : 12 + length].tolist() == new[:length]
        assert set(found[row, 12 + length :].tolist()) <= {eos_id}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: PosteriorEnsemble([]), "models: vocabularies of"),
        (
            lambda members: PosteriorEnsemble(
                [
                    members[0],
                    models.build(SHAPE.model_copy(update={"vocab_size": 33}), rng_seed=0),
                ]
            ),
            r"vocabularies of \[32, 33\]",
        ),
        (lambda members: PosteriorEnsemble(members, log_prior=[0.0]), "expected 3 numbers"),
        (lambda members: PosteriorEnsemble(members, log_prior=[-np.inf] * 3), "log_prior"),
        (lambda _: Sampling(temperature=-1.0), "temperature -1.0"),
        (lambda _: Sampling(top_p=0.0), r"top_p 0\.0"),
        (
            lambda members: PosteriorEnsemble(members).read(torch.ones((1, 25), dtype=torch.long)),
            "expected at most the 24",
        ),
        (
            lambda members: PosteriorEnsemble(members).read(torch.ones((1, 0), dtype=torch.long)),
            "tokens: 1 rows of 0",
        ),
        (
            lambda members: generate(
                PosteriorEnsemble(members), torch.ones((1, 20), dtype=torch.long), max_new_tokens=5
            ),
            "expected at most 4",
        ),
        (
            lambda members: generate(
                PosteriorEnsemble(members), torch.ones((1, 2), dtype=torch.long), max_new_tokens=0
            ),
            "max_new_tokens 0",
        ),
    ],
)
def test_what_cannot_be_generated_is_refused_by_name(members, make, words):
    with pytest.raises(GenerationError, match=words):
        make(members)
