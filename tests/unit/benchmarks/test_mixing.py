"""Benchmarks of mixtures: both sides do the same work, and the experiment is what it says."""

import pytest
import torch

from benchmarks.mixing.dispatch import LAYERS, Layer, balanced_gates, measure_dispatch
from benchmarks.mixing.experiment import EXPERIMENT, QualityError, read_experiment
from benchmarks.mixing.models import make_experts, prompt_of
from benchmarks.mixing.speed import Text, measure_generation
from coordinator.init import init_folder
from coordinator.runfile import load_run_file
from protocol.specs import ModelShape
from shared.shards import BOS_ID

torch.set_num_threads(1)

SHAPE = ModelShape(
    vocab_size=64, hidden_size=16, num_layers=2, num_heads=2, ffn_width=16, context_length=32
)


@pytest.mark.parametrize("trained", ["ffn", "ffn_embeddings"])
def test_a_prompt_of_a_domain_goes_through_its_expert_alone(trained):
    experts = make_experts(SHAPE, 3, trained=trained)
    assert [member.config.intermediate_size for member in experts.members] == [12, 16, 20]
    for domain in range(3):
        prompt = prompt_of(domain, 3, rows=2, length=12, vocab_size=64)
        with torch.inference_mode():
            found = experts.mixture(input_ids=prompt, output_gates=True)
        (gates,) = found.gates
        assert gates[:, 1:, domain].eq(1).all()


def test_prompts_begin_with_bos_and_hold_their_domains_tokens_alone():
    prompt = prompt_of(2, 5, rows=3, length=20, vocab_size=64)
    assert prompt.shape == (3, 20)
    assert prompt[:, 0].eq(BOS_ID).all()
    assert (prompt[:, 1:] % 5 == 2).all()
    assert prompt.max() < 64


def test_generation_is_measured_in_pairs():
    (found,) = measure_generation(
        SHAPE,
        [2],
        text=Text(rows=1, prompt=8, new=4),
        rounds=2,
        trained="ffn_embeddings",
        say=lambda _: None,
    )
    assert (found.experts, found.ratio.pairs, found.goal) == (2, 2, None)
    assert len(found.mixture) == len(found.ensemble) == 2


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.title)
def test_both_kinds_of_layers_compute_the_same_flops(layer):
    gates = balanced_gates(layer)[0]
    rows = (gates > 0).sum(0)
    assert gates.sum(1).allclose(torch.ones(layer.tokens))
    assert (gates > 0).sum(1).eq(layer.top_k).all()
    unequal = sum(int(n) * width for n, width in zip(rows, layer.widths, strict=True))
    assert unequal == int(rows.sum()) * layer.equal_width


def test_tokens_that_cannot_be_divided_are_refused():
    with pytest.raises(ValueError, match="multiple of 3"):
        balanced_gates(Layer("odd", 8, (4, 8, 12), 1, 10))


def test_dispatch_is_measured_forward_and_backward():
    layer = Layer("tiny", 8, (4, 8, 12), 2, 12)
    found = measure_dispatch([layer], rounds=2, say=lambda _: None)
    assert [one.training for one in found] == [False, True]
    assert all(one.ratio.pairs == 2 for one in found)


def test_the_experiment_is_the_presets(tmp_path):
    experiment = read_experiment()
    init_folder(tmp_path / "run", preset="mixing")
    run = load_run_file(tmp_path / "run" / "run.toml")
    assert sorted(run.trained) == sorted(experiment.trained)
    assert set(run.domains) == {*experiment.trained, *experiment.held_out}
    assert set(experiment.alike) < set(experiment.trained)
    assert run.widths.nested() == tuple(experiment.widths)
    assert run.plan.homogeneous_steps == experiment.expert_steps
    assert run.plan.schemes == (experiment.scheme,)
    assert run.dense is not None
    assert run.dense.learning_rates == (experiment.control_learning_rate,)
    assert experiment.recipes().keys() == experiment.variants.keys()


def test_a_wrong_experiment_is_refused_by_its_field(tmp_path):
    path = tmp_path / "experiment.toml"
    with pytest.raises(QualityError, match="cannot be read"):
        read_experiment(path)
    path.write_text(EXPERIMENT.read_text("utf-8").replace("dev_tokens = 1500", "dev_tokens = 0"))
    with pytest.raises(QualityError, match="dev_tokens"):
        read_experiment(path)
