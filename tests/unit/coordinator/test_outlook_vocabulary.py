"""What a run will cost is reckoned with the vocabulary that it will have, as far as it is known."""

import json
import sys
from pathlib import Path

import llamas
import pytest
from plans import lineages_of, prepared_for, run_of

from coordinator.folders import RunFolders
from coordinator.main import main
from coordinator.planning.outlook import PLANNED_VOCABULARY, outlook
from coordinator.pretrained.looking import given_vocabulary, prepared_vocabulary
from coordinator.pretrained.source import SourceError
from coordinator.runfile import RunFile
from coordinator.text.prepared import PreparedFile
from protocol.specs import ModelShape
from shared.sizing import num_parameters
from shared.text.tokenizer import TokenizerError, learn

SHAPE = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "context_length": 32,
    "num_kv_heads": 2,
    "rope_theta": 5e4,
    "norm_eps": 1e-5,
    "tied_embeddings": True,
}


@pytest.fixture(autouse=True)
def beside_the_run_file(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def pretrained(path: str = "seed", **shape: object) -> RunFile:
    """A run whose seed is a Llama of `llamas`."""
    return run_of(
        lineages_of(["MHo-IHo"]),
        seed={"kind": "pretrained", "pretrained": {"path": path}},
        tokenizer={},
        shape={**SHAPE, **shape},
        widths={"S": 32, "M": 48, "L": 64},
    )


def parameters(run: RunFile) -> int:
    """Of an expert, as it is shown."""
    rows = outlook(run, given_vocabulary(run)).rows
    (found,) = {row.parameters for row in rows if row.kind == "expert"}
    return found


def expected(run: RunFile) -> int:
    """Of an expert, as it will be trained."""
    assert llamas.CONFIG["intermediate_size"] == run.widths.M
    return sum(parameter.numel() for parameter in llamas.llama().parameters())


def test_experts_of_a_pretrained_seed_are_reckoned_as_large_as_they_will_be(tmp_path):
    run = pretrained()
    llamas.save(llamas.llama(), tmp_path / "seed")
    (tmp_path / "seed" / "model.safetensors").unlink()
    assert parameters(run) == expected(run), "of the weights nothing is read"
    found = given_vocabulary(run)
    assert (found.num_tokens, found.assumed) == (llamas.VOCAB, False)
    assert found.source == "as the seed seed says (2 layers of 32, FFN 48, context 64)"


def test_a_gguf_file_says_it_too(tmp_path):
    run = pretrained("model.gguf")
    llamas.save_gguf(llamas.llama(), tmp_path / "model.gguf")
    assert parameters(run) == expected(run)


def test_a_tokenizer_that_is_given_says_it(tmp_path):
    run = run_of(lineages_of(["MHo-IHo"]), tokenizer={"model": "own.model"})
    assert given_vocabulary(run) is None
    (tmp_path / "own.model").write_bytes(learn(["the king and the onion"] * 40, vocab_size=300))
    found = given_vocabulary(run)
    assert (found.num_tokens, found.source) == (300, "as the tokenizer own.model says")
    (tmp_path / "own.model").write_bytes(b"none")
    with pytest.raises(TokenizerError, match=r"own\.model"):
        given_vocabulary(run)


def test_what_nothing_says_is_called_assumed():
    run = pretrained()
    assert given_vocabulary(run) is None
    found = outlook(run)
    assert found.vocabulary.assumed
    assert found.vocabulary.source == "assumed: seed is not there yet"
    assert found.vocabulary.num_tokens == PLANNED_VOCABULARY
    learned = outlook(run_of(lineages_of(["MHo-IHo"]))).vocabulary
    assert (learned.num_tokens, learned.source) == (320, "as the run file says")


def test_a_seed_that_preparing_would_refuse_is_refused(tmp_path):
    llamas.save(llamas.llama(), tmp_path / "seed")
    with pytest.raises(SourceError, match=r"shape\.num_layers = 3: the seed has 2"):
        given_vocabulary(pretrained(num_layers=3))
    config = json.loads((tmp_path / "seed" / "config.json").read_text())
    (tmp_path / "seed" / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(SourceError, match='model_type = "gpt2"'):
        given_vocabulary(pretrained())


def test_what_was_prepared_is_believed_most(tmp_path):
    run = run_of(lineages_of(["MHo-IHo"]), tokenizer={"vocab_size": 400}, run={"name": "small"})
    assert prepared_vocabulary(run) is None
    path = RunFolders(run.folder).prepared
    path.parent.mkdir(parents=True)
    path.write_text(PreparedFile(text={}, prepared=prepared_for(run)).model_dump_json())
    found = prepared_vocabulary(run)
    assert (found.num_tokens, found.source) == (320, "as it was prepared")


def dry_run(path: Path, capsys, monkeypatch, *more: str) -> str:
    monkeypatch.setattr(sys, "argv", ["hdee-coordinator", "plan", str(path), "--dry-run", *more])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out


def test_a_dry_run_says_where_its_vocabulary_comes_from(write_run, tmp_path, capsys, monkeypatch):
    path = write_run(("vocab_size = 320", 'model = "own.model"'))
    shown = dry_run(path, capsys, monkeypatch)
    assert "vocabulary: 32,000 tokens, assumed: own.model is not there yet\n" in shown
    (tmp_path / "own.model").write_bytes(learn(["the king and the onion"] * 40, vocab_size=300))
    shown = dry_run(path, capsys, monkeypatch)
    assert "vocabulary: 300 tokens, as the tokenizer own.model says\n" in shown
    found = json.loads(dry_run(path, capsys, monkeypatch, "--format", "json"))
    assert found["outlook"]["vocabulary"]["num_tokens"] == 300
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "context_length": 32}
    widest = max(found["outlook"]["rows"], key=lambda row: row["ffn_width"])
    spec = {**shape, "vocab_size": 300, "ffn_width": widest["ffn_width"]}
    assert widest["parameters"] == num_parameters(ModelShape(**spec))
