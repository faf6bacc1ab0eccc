"""A pretrained seed in a run: it fits or is refused, and every width computes what it must."""

from pathlib import Path

import llamas
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from coordinator.folders import RunFolders
from coordinator.planning.recipes import seed_specs
from coordinator.pretrained.activity import measure_activity
from coordinator.pretrained.making import make_pretrained_seed
from coordinator.pretrained.widths import rearranged, unit_order
from coordinator.runfile import GENERAL, RunFileError, load_run_file
from coordinator.scoring.export import export_checkpoint
from coordinator.scoring.measuring import Checkpoint
from coordinator.text.prepare import prepare
from coordinator.text.prepared import PrepareError
from protocol.specs import ModelShape
from shared import model as models
from shared.blobs import BlobStore
from shared.shards import Shard, write_shard
from shared.tensorfiles import check_file, model_tensors, read_tensors, stream_tensors

COORDINATOR = "12D3KooW" + "C" * 44
TOKENS = torch.from_numpy(np.random.default_rng(0).integers(0, llamas.VOCAB, (2, 30)))
SHAPE = ModelShape(
    vocab_size=64,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    ffn_width=12,
    context_length=32,
    num_kv_heads=1,
)

SEED = """[seed]
kind = "pretrained"
[seed.pretrained]
path = "seed"
"""
SHAPE_OF_SEED = """hidden_size = 32
num_layers = 2
num_heads = 4
context_length = 32
num_kv_heads = 2
rope_theta = 5e4
norm_eps = 1e-5
tied_embeddings = true
"""


@pytest.fixture
def write_pretrained(write_run, tmp_path):
    """A run whose seed is a tiny Llama that lies beside the run file."""
    llamas.save(llamas.llama(), tmp_path / "seed")

    def write(*changes: tuple[str, str]) -> Path:
        path = write_run()
        text = path.read_text()
        text = text.replace("[tokenizer]\nvocab_size = 320\n", "")
        start, end = text.index("hidden_size"), text.index("[widths]")
        text = text[:start] + SHAPE_OF_SEED + text[end:]
        text = text.replace("S = 16\nM = 24\nL = 32", "S = 32\nM = 48\nL = 64")
        start, end = text.index("[seed]"), text.index("[recipe]")
        text = text[:start] + SEED + text[end:]
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path.write_text(text)
        return path

    return write


def logits(model, tokens=TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def quiet(_line: str = "") -> None:
    pass


def random_model(shape: ModelShape):
    model = models.build(shape, rng_seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.dim() == 1 else 0.0, 0.2)
    return model


@settings(max_examples=8, deadline=None)
@given(data=st.data(), wider=st.integers(1, 30))
def test_neither_order_nor_new_units_change_what_a_model_computes(tmp_path_factory, data, wider):
    folder = tmp_path_factory.mktemp("widths")
    model = random_model(SHAPE)
    models.save(model, folder / "own")
    tensors = read_tensors(folder / "own")
    order = np.stack([data.draw(st.permutations(range(12))) for _ in range(2)])
    wide = SHAPE.model_copy(update={"ffn_width": 12 + wider})
    read = rearranged(tensors.__getitem__, order, ffn_width=wide.ffn_width, rng_seed=3)
    stream_tensors(folder / "wide", model_tensors(wide), read)
    tokens = TOKENS % 64
    for width in (12, wide.ffn_width):
        shape = SHAPE.model_copy(update={"ffn_width": width})
        found = logits(models.load(folder / "wide", shape), tokens)
        assert torch.allclose(found, logits(model, tokens), rtol=1e-5, atol=1e-5)
    gates = read("model.layers.1.mlp.gate_proj.weight")
    assert len(np.unique(gates, axis=0)) == len(gates)


def test_activity_is_what_units_add_to_the_residual_stream(tmp_path):
    model = random_model(SHAPE)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, 5] = 0
        model.model.layers[0].mlp.down_proj.weight[:, 2] *= 100
        # Where a unit's scale lies, in up or in down, is of no account.
        model.model.layers[1].mlp.up_proj.weight[7] *= 8
        model.model.layers[1].mlp.down_proj.weight[:, 7] /= 8
    text = np.concatenate([[1], np.random.default_rng(1).integers(2, 64, 20)])
    write_shard(tmp_path / "shard", [(text, 20)], vocab_size=64)
    shard = Shard.read(tmp_path / "shard", vocab_size=64)
    found = measure_activity(model, shard, tick=quiet)
    seen = []
    hook = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0][0])
    )
    logits(model, torch.from_numpy(text[None, :-1]))
    hook.remove()
    columns = model.model.layers[1].mlp.down_proj.weight
    added = torch.stack([torch.outer(seen[0][:, unit], columns[:, unit]) for unit in range(12)])
    sizes = added.detach().reshape(12, 20, 16).norm(dim=2).mean(dim=1)
    assert found.shape == (2, 12)
    assert found[1] == pytest.approx(sizes.double().numpy(), rel=1e-4)
    order = unit_order(found)
    assert order[1][-1] == 5
    assert order[0][0] == 2
    assert unit_order(np.zeros((1, 4))).tolist() == [[0, 1, 2, 3]]


def test_a_pretrained_seed_becomes_a_checkpoint_of_all_widths(write_pretrained, tmp_path):
    run = load_run_file(write_pretrained())
    folders = RunFolders(run.folder)
    prepared = prepare(run, folders, progress=quiet)
    store = BlobStore(folders.blobs)
    shard = prepared.shard(GENERAL, "train")
    assert prepared.vocab_size == shard.vocab_size == llamas.VOCAB
    assert Shard.read(store.path(shard.blob.digest), vocab_size=llamas.VOCAB).bos_id == 1
    specs = seed_specs(run, prepared)
    assert len({spec.digest for spec in specs.values()}) == 1
    made = make_pretrained_seed(run, prepared, store, coordinator=COORDINATOR, tick=quiet)
    again = make_pretrained_seed(run, prepared, store, coordinator=COORDINATOR, tick=quiet)
    assert (made, made.spec) == (again, specs["M"])
    assert store.verify(made.manifest_ref.digest)
    assert (made.spec.shape.ffn_width, made.spec.nested_widths) == (64, (32, 48, 64))
    file = store.path(made.manifest.blob("model.safetensors").digest)
    check_file(file, model_tensors(made.spec.shape))
    expected = logits(llamas.llama())
    errors = {}
    for width in made.spec.nested_widths:
        shape = made.spec.shape.model_copy(update={"ffn_width": width})
        errors[width] = float((logits(models.load(file, shape)) - expected).abs().max())
    assert errors[48] < 1e-4
    assert errors[64] < 1e-4
    assert errors[32] > 1e-2
    assert prepare(run, folders, progress=quiet) == prepared


def test_a_seed_of_one_width_is_the_model_bit_for_bit(write_pretrained):
    path = write_pretrained(("S = 32\n", ""), ("L = 64\n", ""))
    ranks = '[ranks]\nS = 2\nM = 4\nL = 6\n[recipe]\ntrains = "lora"\n'
    path.write_text(path.read_text().replace("[recipe]\n", ranks))
    run = load_run_file(path)
    folders = RunFolders(run.folder)
    prepared = prepare(run, folders, progress=quiet)
    store = BlobStore(folders.blobs)
    made = make_pretrained_seed(run, prepared, store, coordinator=COORDINATOR, tick=quiet)
    assert (made.spec.shape.ffn_width, made.spec.nested_widths) == (48, ())
    tensors = read_tensors(store.path(made.manifest.blob("model.safetensors").digest))
    assert tensors.keys() == model_tensors(made.spec.shape).keys()
    for name, weight in llamas.llama().named_parameters():
        assert weight.detach().numpy().tobytes() == tensors[name].tobytes(), name


def test_the_exported_seed_is_the_model_with_its_own_tokenizer(write_pretrained, tmp_path):
    run = load_run_file(write_pretrained())
    folders = RunFolders(run.folder)
    prepared = prepare(run, folders, progress=quiet)
    store = BlobStore(folders.blobs)
    made = make_pretrained_seed(run, prepared, store, coordinator=COORDINATOR, tick=quiet)
    blob = made.manifest.blob("model.safetensors").digest
    shape = made.spec.shape.model_copy(update={"ffn_width": 48})
    checkpoint = Checkpoint(digest=blob, path=store.path(blob), shape=shape)
    export_checkpoint(checkpoint, name="seed", experts=folders.experts, tokenizer=folders.tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folders.experts / "seed")
    assert torch.allclose(logits(model), logits(llamas.llama()), rtol=1e-5, atol=1e-4)
    assert (model.config.bos_token_id, model.generation_config.bos_token_id) == (1, 1)
    tokenizer = AutoTokenizer.from_pretrained(folders.experts / "seed")
    ours = llamas.byte_level().encode("the king", add_special_tokens=False).ids
    assert tokenizer.encode("the king") == [1, *ours]


def test_another_model_under_the_same_path_is_refused(write_pretrained, tmp_path):
    run = load_run_file(write_pretrained())
    folders = RunFolders(run.folder)
    prepared = prepare(run, folders, progress=quiet)
    model = llamas.llama()
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    llamas.save(model, tmp_path / "seed")
    store = BlobStore(folders.blobs)
    with pytest.raises(PrepareError, match=r"have digest .* prepared with .*put them back"):
        make_pretrained_seed(run, prepared, store, coordinator=COORDINATOR, tick=quiet)
    moved = load_run_file(write_pretrained(('path = "seed"', 'path = "./seed"')))
    with pytest.raises(PrepareError, match=r"seed\.pretrained\.path.*became"):
        prepare(moved, folders, progress=quiet)


def test_a_run_file_that_does_not_fit_its_seed_is_told_every_number(write_pretrained):
    changes = [
        ("num_layers = 2", "num_layers = 3"),
        ("num_kv_heads = 2\n", ""),
        ("rope_theta = 5e4\n", ""),
        ("context_length = 32", "context_length = 65"),
        ("M = 48", "M = 40"),
    ]
    run = load_run_file(write_pretrained(*changes))
    with pytest.raises(PrepareError) as caught:
        prepare(run, RunFolders(run.folder), progress=quiet)
    assert str(caught.value).splitlines()[1:] == [
        "  shape.num_layers = 3: the seed has 2",
        "  shape.context_length = 65: the seed has at most 64",
        "  shape.num_kv_heads = 4: the seed has 2",
        "  shape.rope_theta = 10000.0: the seed has 50000.0",
        "  widths.M = 40: the seed has 48",
    ]


@pytest.mark.parametrize(
    ("vocab_size", "bos", "problem"),
    [
        (400, 1, r"the tokenizer has \d+ ids, the pretrained seed 400"),
        (270, 1, r"the tokenizer has \d+ ids, the pretrained seed 270"),
    ],
)
def test_a_tokenizer_that_does_not_match_is_refused_with_both_numbers(
    write_pretrained, tmp_path, vocab_size, bos, problem
):
    llamas.save(llamas.llama(vocab_size=vocab_size), tmp_path / "seed")
    run = load_run_file(write_pretrained())
    with pytest.raises(PrepareError, match=problem):
        prepare(run, RunFolders(run.folder), progress=quiet)


def test_a_given_tokenizer_must_be_the_seeds(write_pretrained, tmp_path):
    path = write_pretrained()
    given = '[tokenizer]\nmodel = "given.json"\n[shape]'
    path.write_text(path.read_text().replace("[shape]", given))
    (tmp_path / "given.json").write_bytes((tmp_path / "seed" / "tokenizer.json").read_bytes())
    run = load_run_file(path)
    (tmp_path / "seed" / "tokenizer.json").unlink()
    assert prepare(run, RunFolders(run.folder), progress=quiet).vocab_size == llamas.VOCAB


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('kind = "pretrained"', 'kind = "nested"', "seed.recipe: missing; seed.kind 'nested'"),
        ('kind = "pretrained"', 'kind = "nested"', "seed.pretrained: with seed.kind 'nested'"),
        ('[seed.pretrained]\npath = "seed"\n', "", "seed.pretrained: missing; seed.kind"),
        ("[shape]", "[tokenizer]\nvocab_size = 300\n[shape]", "tokenizer.vocab_size: 300 with"),
        ('path = "seed"', 'path = "seed"\nspeed = 1', "seed.pretrained.speed: unknown key"),
    ],
)
def test_a_seed_that_contradicts_itself_is_refused(write_pretrained, old, new, problem):
    with pytest.raises(RunFileError) as caught:
        load_run_file(write_pretrained((old, new)))
    assert problem in str(caught.value)


def test_a_trained_seed_takes_no_model(write_run):
    taken = ("[seed.recipe]", '[seed.pretrained]\npath = "x"\n[seed.recipe]')
    with pytest.raises(RunFileError, match=r"seed\.pretrained: with seed.kind 'nested', which has"):
        load_run_file(write_run(taken))
