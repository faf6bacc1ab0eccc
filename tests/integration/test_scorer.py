"""The scorer over a real ledger, real shards and checkpoints that the real trainer made."""

import json
import logging
import math
import random
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from coordinator.folders import RunFolders
from coordinator.ledger import Ledger, queries
from coordinator.lifecycle import Holder
from coordinator.prepare import prepare
from coordinator.pulse import Pulse
from coordinator.rounds import next_action
from coordinator.runfile import load_run_file
from coordinator.scorer import Scorer, run_scorer
from protocol.assignments import AssignmentState
from protocol.capability import Capability
from protocol.manifests import CheckpointManifest, ManifestFile
from protocol.messages import ResultTable, Submission
from shared import clock
from shared.blobstore import BlobStore
from shared.identity import Identity
from shared.likelihood import label_log_likelihoods
from shared.model import load
from shared.shards import Shard, scoring_windows
from shared.tensorfiles import read_tensors, write_tensors
from worker.trainer import loop
from worker.trainer.assignment import TrainerAssignment

RUN_FILE = """
[run]
name = "tiny"
[tokenizer]
vocab_size = 320
[shape]
hidden_size = 32
num_layers = 2
num_heads = 2
context_length = 32
[widths]
S = 32
M = 48
L = 64
[general]
sources = [{path = "general/*.txt", document = "split:(?m)^#"}]
[domains.cooking]
sources = [{path = "cooking/*.txt", document = "split:(?m)^#"}]
difficulty = "difficult"
[domains.drama]
sources = [{path = "drama/*.txt", document = "split:(?m)^#"}]
difficulty = "easy"
[domains.python]
sources = [{path = "python/*.txt", document = "split:(?m)^#"}]
difficulty = "moderate"
[seed]
kind = "nested"
[seed.recipe]
num_steps = 120
warmup_steps = 5
peak_learning_rate = 1e-2
final_learning_rate = 1e-3
micro_batch = 8
sequence_length = 32
[recipe]
warmup_steps = 2
peak_learning_rate = 1e-2
final_learning_rate = 1e-3
micro_batch = 8
sequence_length = 32
schedule_steps = 60
trains = "ffn_embeddings"
[plan]
schemes = ["MHo-IHo", "MHe-IHo"]
homogeneous_steps = 40
"""
COOKING = "stir the onion with salt and oil then add water to pan"
DRAMA = "o my lord thy crown is lost what news of king"
PYTHON = "def return self value for item in list if not none"
WORDS = {
    name: text.split()
    for name, text in (("cooking", COOKING), ("drama", DRAMA), ("python", PYTHON))
}
HEARTBEAT = 10.0


def chain(words, draw):
    """A sentence in which a word is mostly followed by the same one: what an expert can learn."""
    index, said = draw.randrange(len(words)), []
    for _ in range(14):
        said.append(words[index])
        index = index + 1 if draw.random() < 0.9 else draw.randrange(len(words))
        index %= len(words)
    return " ".join(said)


def write_run(root):
    draw = random.Random(11)
    everything = [word for words in WORDS.values() for word in words]
    texts = {name: [chain(words, draw) for _ in range(600)] for name, words in WORDS.items()}
    texts["general"] = [" ".join(draw.choices(everything, k=14)) for _ in range(600)]
    for name, documents in texts.items():
        (root / name).mkdir()
        (root / name / "0.txt").write_text("".join(f"# {text}\n" for text in documents), "utf-8")
    (root / "keys").mkdir()
    (root / "keys" / "split.key").write_text("ab" * 32, "ascii")
    (root / "run.toml").write_text(RUN_FILE, "utf-8")


class TinyRun:
    """A run's folder with its ledger, a scorer that a test steps, and volunteers to do the work."""

    def __init__(self, root, trained):
        self.run = load_run_file(root / "run.toml")
        self.folders = RunFolders(self.run.folder)
        self.prepared = prepare(self.run, self.folders, progress=print)
        self.store = BlobStore(self.folders.blobs)
        self.ledger = Ledger(self.folders.ledger_url)
        self.ledger.create()
        self.trained = trained
        self.time = 1000.0
        self.workers = []
        with self.ledger.begin() as connection:
            queries.create_run(
                connection, run="tiny", coordinator=self._peer(root, "coordinator"), now=self.time
            )
            for number in range(4):
                worker = self._peer(root, f"worker-{number}")
                queries.register_worker(connection, registration(worker), self.time)
                self.workers.append(worker)
        self.scorer = self.new_scorer()

    @staticmethod
    def _peer(root, name):
        return Identity.load_or_create(root / "keys" / f"{name}.key").peer_id

    def now(self):
        return self.time

    def new_scorer(self):
        """As after a restart of the role: nothing is remembered."""
        log = logging.getLogger("test.scorer")
        pulse = Pulse(beat=print, stop=threading.Event(), now=self.now, log=log)
        return Scorer(
            self.run,
            self.folders,
            self.prepared,
            self.ledger,
            pulse=pulse,
            now=self.now,
            log=log,
        )

    def snapshot(self):
        with self.ledger.read() as connection:
            return queries.snapshot(connection)

    def rows(self, kind=None, domain=None):
        return [
            row
            for row in self.snapshot().assignments
            if kind in (None, row.spec.kind) and domain in (None, row.spec.domain)
        ]

    def row(self, assignment):
        with self.ledger.read() as connection:
            return queries.get_assignment(connection, assignment)

    def settle(self):
        """Steps until the scorer has nothing more to do."""
        for _ in range(50):
            if not self.scorer.step():
                return
        raise AssertionError("the scorer does not come to rest")

    def parent_of(self, spec):
        """The parent's file and spec, None for a seed."""
        if spec.parent is None:
            return None
        with self.ledger.read() as connection:
            parent = queries.accepted(connection)[spec.parent]
        return self.store.path(parent.manifest.blob("model.safetensors").digest), parent.spec

    def train(self, spec):
        """The expert's file, from the trainer, once for all tests."""
        folder = self.trained / spec.digest
        file = folder / "expert" / "model.safetensors"
        if not file.exists():
            parent = self.parent_of(spec)
            assignment = TrainerAssignment(
                spec=spec,
                shard=str(self.store.path(spec.train_shard)),
                parent=None if parent is None else str(parent[0]),
                parent_shape=None if parent is None else parent[1].shape,
                resume=None,
                folder=str(folder),
                device="cpu",
                num_threads=1,
                checkpoint_seconds=1000.0,
            )
            loop.run(
                loop.load(assignment),
                folder=folder,
                checkpoint_seconds=1000.0,
                stopping=lambda: False,
            )
        return file

    def hand_in(self, row, file=None, *, worker=0):
        """A worker leases `row`, submits `file` (its honest expert by default); it is collected."""
        file = file or self.train(row.spec)
        name, assignment = self.workers[worker], row.assignment
        self.time = max(self.time, self.row(assignment).standing.not_before)
        manifest = CheckpointManifest(
            kind="expert",
            spec=row.spec.digest,
            worker=name,
            step=row.spec.train.num_steps,
            loss=1.0,
            files=(ManifestFile(name="model.safetensors", blob=self.store.add_file(file)),),
        )
        ref = self.store.add_bytes(manifest.model_dump_json().encode())
        with self.ledger.begin() as connection:
            timing = {"now": self.time, "heartbeat_seconds": HEARTBEAT}
            terms = queries.OfferTerms(
                assignment=assignment, worker=name, free_memory_bytes=10**9, reason="test"
            )
            offered = queries.offer_assignment(connection, terms, **timing)
            holder = Holder(worker=name, fencing=offered.fencing)
            queries.acknowledge_lease(connection, assignment, holder, **timing)
            submission = Submission(
                request_id="0" * 32,
                fencing=offered.fencing,
                manifest=ref,
                tokens_per_second=1.0,
                train_seconds=1.0,
            )
            queries.submit_expert(connection, assignment, submission, worker=name, **timing)
            for announced in queries.announced_checkpoints(connection):
                queries.mark_durable(connection, announced.checkpoint_id, manifest, self.time)

    def to_experts(self):
        """Through the seed to the planned experts."""
        self.settle()
        self.hand_in(self.rows("seed")[0])
        self.settle()

    def to_the_end(self):
        self.to_experts()
        for row in self.rows("expert"):
            self.hand_in(row)
            self.settle()


def registration(worker):
    return queries.Registration(
        worker=worker,
        name="",
        software_version="0",
        capability=Capability(
            device="cpu",
            device_name="test",
            num_threads=1,
            total_memory_bytes=10**9,
            free_memory_bytes=10**9,
            free_disk_bytes=10**9,
            flops_per_second=1e9,
            bfloat16=False,
        ),
        maddrs=(),
        token_digest=worker,
        token_expires_at=1e12,
        certificate_expires_at=1e12,
    )


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """The prepared run, and a folder for what the trainer makes, both for all tests."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("workshop")
    (root / "run").mkdir()
    write_run(root / "run")
    run = load_run_file(root / "run" / "run.toml")
    prepare(run, RunFolders(run.folder), progress=print)
    return root


@pytest.fixture
def tiny(workshop, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(workshop / "run", root)
    tiny = TinyRun(root, workshop / "trained")
    yield tiny
    tiny.ledger.close()


def changed(file, target, change):
    """A copy of a file of weights, its tensors changed by `change(tensors)`."""
    tensors = {name: np.array(tensor) for name, tensor in read_tensors(file).items()}
    change(tensors)
    write_tensors(target, tensors)
    return target


def test_a_run_goes_from_nothing_to_a_table(tiny):
    tiny.to_the_end()
    snapshot = tiny.snapshot()
    assert snapshot.phase == "finished"
    assert {row.state for row in snapshot.assignments} == {AssignmentState.ACCEPTED}
    assert len(tiny.rows("seed")) == 1
    assert len(tiny.rows("expert")) == 5
    table = snapshot.results
    assert [row.domain for row in table.rows] == ["cooking", "drama", "python"]
    for row in table.rows:
        assert row.perplexity["MHo-IHo"] < 0.8 * row.perplexity["seed M"]
        assert row.perplexity["MHo-IHo+seed"] < 0.8 * row.perplexity["seed M"]
    tied = {row.domain: bool(row.tied) for row in table.rows}
    assert tied == {"cooking": False, "drama": False, "python": True}
    written = json.loads((tiny.folders.state / "results.json").read_text())
    assert ResultTable.model_validate(written["table"]) == table
    assert [domain["domain"] for domain in written["domains"]] == ["cooking", "drama", "python"]


def test_a_role_killed_after_every_step_plans_nothing_twice(tiny):
    def settle_with_restarts():
        for _ in range(50):
            tiny.scorer = tiny.new_scorer()
            if not tiny.scorer.step():
                return

    tiny.settle = settle_with_restarts
    tiny.to_the_end()
    with tiny.ledger.read() as connection:
        kinds = [entry.kind for entry in queries.read_entries(connection)]
        assert queries.verify_chain(connection) is None
    assert tiny.snapshot().phase == "finished"
    assert kinds.count("plan") == 6
    assert kinds.count("accept") == 6
    assert kinds.count("results") == 1


def test_scoring_again_computes_nothing_again(tiny):
    tiny.to_the_end()
    folder = tiny.folders.sealed / "likelihoods"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with tiny.ledger.begin() as connection:
        queries.set_phase(connection, "scoring", "again", tiny.time)
    tiny.new_scorer().step()
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert tiny.snapshot().phase == "finished"


def decision_on(tiny, row, file, worker=0):
    """The scorer's decision on a submission, as the ledger shows it."""
    tiny.hand_in(row, file, worker=worker)
    tiny.settle()
    after = tiny.row(row.assignment)
    return after.state, after.reason


def test_a_checkpoint_of_another_shape_is_rejected(tiny):
    tiny.settle()
    seed = tiny.rows("seed")[0]
    narrow = seed.spec.shape.model_copy(update={"ffn_width": 48})
    file = tiny.folders.root / "narrow.safetensors"
    model = load(tiny.train(seed.spec), narrow)
    write_tensors(file, {name: p.detach().numpy() for name, p in model.named_parameters()})
    state, reason = decision_on(tiny, seed, file)
    assert state is AssignmentState.OPEN
    assert reason == "rejected: its file does not hold what its spec says"


def test_weights_that_are_not_finite_are_rejected(tiny):
    tiny.settle()
    seed = tiny.rows("seed")[0]

    def poison(tensors):
        tensors["model.norm.weight"][3] = np.nan

    file = changed(tiny.train(seed.spec), tiny.folders.root / "nan.safetensors", poison)
    state, reason = decision_on(tiny, seed, file)
    assert state is AssignmentState.OPEN
    assert reason == "rejected: its file does not hold what its spec says"


def test_a_seed_that_is_no_better_than_a_unigram_model_is_rejected(tiny):
    tiny.settle()
    seed = tiny.rows("seed")[0]

    def scramble(tensors):
        noise = np.random.default_rng(0)
        for tensor in tensors.values():
            tensor += noise.normal(0.0, 0.5, tensor.shape).astype(np.float32)

    file = changed(tiny.train(seed.spec), tiny.folders.root / "noise.safetensors", scramble)
    state, reason = decision_on(tiny, seed, file)
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
    state, reason = decision_on(tiny, seed, file)
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
        state, reason = decision_on(tiny, row, file)
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
    state, reason = decision_on(tiny, drama, tiny.train(cooking.spec), worker=1)
    assert state is AssignmentState.OPEN
    assert reason == "rejected: equal to a known checkpoint"


def test_a_changed_frozen_tensor_is_rejected(tiny):
    tiny.to_experts()
    row = tiny.rows("expert")[0]

    def touch_attention(tensors):
        tensors["model.layers.1.self_attn.q_proj.weight"][0, 0] += 1e-6

    file = changed(tiny.train(row.spec), tiny.folders.root / "thawed.safetensors", touch_attention)
    state, reason = decision_on(tiny, row, file)
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
    state, reason = decision_on(tiny, row, file)
    assert state is AssignmentState.OPEN
    assert reason == "rejected: worse than its parent on held-out text"
    assert not tiny.store.has(digest), "what was rejected is not kept"
    assert not list((tiny.folders.sealed / "likelihoods").glob(f"{digest}-*"))
    state, _ = decision_on(tiny, row, tiny.train(row.spec), worker=1)
    assert state is AssignmentState.ACCEPTED


def test_an_expert_that_hardly_differs_from_its_parent_is_inconclusive(tiny):
    tiny.to_experts()
    row = tiny.rows("expert")[0]
    parent, _ = tiny.parent_of(row.spec)
    model = load(parent, row.spec.shape)
    tensors = {name: p.detach().numpy() for name, p in model.named_parameters()}
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += np.float32(1e-4)
    file = tiny.folders.root / "same.safetensors"
    write_tensors(file, tensors)
    state, reason = decision_on(tiny, row, file)
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


def direct_posterior_perplexity(tiny, schemes, domain):
    """The uniform-prior posterior ensemble from full distributions, token by token, in fp64."""
    with tiny.ledger.read() as connection:
        accepted = queries.accepted(connection)
    rows = [row for row in tiny.rows("expert") if schemes in row.schemes]
    models = [
        load(
            tiny.store.path(accepted[row.spec.digest].manifest.blob("model.safetensors").digest),
            row.spec.shape,
        ).double()
        for row in rows
    ]
    manifest = tiny.prepared.shard(domain, "test")
    sealed = BlobStore(tiny.folders.sealed)
    shard = Shard.read(sealed.path(manifest.blob.digest), vocab_size=manifest.vocab_size)
    windows = scoring_windows(shard, 32)
    nats, labels = 0.0, 0
    for start, length in zip(windows.starts, windows.lengths, strict=True):
        tokens = torch.tensor(shard.tokens[start : start + length + 1].astype(np.int64))
        with torch.no_grad():
            distributions = [
                model(input_ids=tokens[None, :-1]).logits[0].softmax(dim=-1) for model in models
            ]
        weights = [1 / len(models)] * len(models)
        for position, token in enumerate(tokens[1:]):
            mixed = sum(
                weight * p[position] for weight, p in zip(weights, distributions, strict=True)
            )
            assert float(mixed.sum()) == pytest.approx(1.0, abs=1e-9)
            nats -= math.log(float(mixed[token]))
            joint = [
                weight * float(p[position, token])
                for weight, p in zip(weights, distributions, strict=True)
            ]
            weights = [value / sum(joint) for value in joint]
            labels += 1
    return math.exp(nats / labels)


def test_the_posterior_ensemble_agrees_with_the_full_distributions(tiny):
    tiny.to_the_end()
    for scheme in ("MHo-IHo", "MHe-IHo"):
        row = next(row for row in tiny.snapshot().results.rows if row.domain == "python")
        direct = direct_posterior_perplexity(tiny, scheme, "python")
        assert row.perplexity[scheme] == pytest.approx(direct, rel=1e-6)


def test_accepted_checkpoints_load_with_transformers_and_generate(tiny):
    tiny.to_experts()
    row = tiny.rows("expert", "python")[0]
    tiny.hand_in(row)
    tiny.settle()
    tiny.scorer.step()
    names = sorted(path.name for path in tiny.folders.experts.iterdir())
    seed = tiny.rows("seed")[0].spec.digest[:8]
    assert names == [
        f"python-ffn48-{row.spec.digest[:8]}",
        f"seed-ffn32-{seed}",
        f"seed-ffn48-{seed}",
        f"seed-ffn64-{seed}",
    ]
    for name in names:
        folder = tiny.folders.experts / name
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert model.config.intermediate_size == int(name.split("ffn")[1].split("-")[0])
        prompt = tokenizer("def return", return_tensors="pt")
        written = model.generate(**prompt, max_new_tokens=8, do_sample=False)
        assert written.shape[1] <= prompt["input_ids"].shape[1] + 8
        assert tokenizer.decode(written[0], skip_special_tokens=True).startswith("def return")
    trained = read_tensors(tiny.train(row.spec))
    exported = model_tensors_of(tiny.folders.experts / names[0])
    assert exported.keys() == trained.keys()
    assert all(np.array_equal(exported[name], trained[name]) for name in trained)


def model_tensors_of(folder):
    return read_tensors(folder / "model.safetensors")


def test_a_plan_out_of_balance_stalls_with_its_numbers(tiny):
    tiny.run = tiny.run.model_copy(
        update={
            "domains": {
                name: domain.model_copy(update={"difficulty": "difficult"})
                for name, domain in tiny.run.domains.items()
            }
        }
    )
    tiny.scorer = tiny.new_scorer()
    tiny.to_experts()
    with tiny.ledger.read() as connection:
        run = queries.get_run(connection)
    assert run.phase == "stalled"
    assert "budgets differ" in run.phase_reason
    assert tiny.rows("expert") == []


def wait_for(condition, *, seconds=40.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.02)


def test_the_role_runs_the_whole_run_beats_and_stops_when_asked(tiny):
    stop = threading.Event()
    role = threading.Thread(
        target=run_scorer,
        args=(tiny.run, tiny.folders, tiny.prepared, tiny.ledger),
        kwargs={"stop": stop, "now": clock.now, "log": logging.getLogger("test.role")},
    )
    tiny.time = clock.now()
    role.start()
    try:
        wait_for(lambda: tiny.rows("seed"))
        tiny.hand_in(tiny.rows("seed")[0])
        wait_for(lambda: len(tiny.rows("expert")) == 5)
        for row in tiny.rows("expert"):
            tiny.hand_in(row)
        wait_for(lambda: tiny.snapshot().phase == "finished")
        with tiny.ledger.read() as connection:
            assert clock.now() - queries.role_beats(connection)["scorer"] < 5
    finally:
        stop.set()
        role.join(timeout=10)
    assert not role.is_alive()
    assert isinstance(tiny.snapshot().results, ResultTable)
    assert type(next_action(tiny.snapshot(), domains=tiny.run.domains)).__name__ == "Finished"
