"""What is refused, with the reason, or never becomes durable."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from coordinator.ledger import queries
from coordinator.network.collector import MAX_REASON
from protocol.assignments import AssignmentState
from protocol.blobs import BlobRef
from protocol.messages import AssignmentHeartbeat
from shared import tensorfiles
from tests.integration.collector.place import HEARTBEAT_SECONDS, Files, Place, sound


def with_nan(files: Files) -> Files:
    name = "model.norm.weight"
    return replace(files, model={**files.model, name: files.model[name] * np.float32("nan")})


def narrower(files: Files) -> Files:
    shape = files.spec.shape.model_copy(update={"ffn_width": 32})
    return replace(files, model=sound(files.spec.model_copy(update={"shape": shape}), 1).model)


async def test_a_submission_that_is_no_expert_is_refused_and_its_assignment_open_again(
    place: Place,
) -> None:
    await place.connect()
    other = place.make.spec(rng_seed=99).digest
    cases: dict[str, Callable[[Files], BlobRef]] = {
        "tensor model.layers.0.mlp.gate_proj.weight is ('F32', (32, 32)), expected": lambda files: (
            place.submit(place.manifest(narrower(files), "expert"))
        ),
        "NaN or infinite": lambda files: place.submit(place.manifest(with_nan(files), "expert")),
        "header of 1048584 bytes": lambda files: place.submit(
            place.manifest(files, "expert", blobs={"model.safetensors": long_header(place, files)})
        ),
        "manifest.spec: ": lambda files: place.submit(place.manifest(files, "expert", spec=other)),
        "manifest.kind: 'training', expected 'expert'": lambda files: place.submit(
            place.manifest(files, "training")
        ),
        "manifest.step: 7, expected 20": lambda files: place.submit(
            place.manifest(files, "expert", step=7)
        ),
        "manifest.worker: ": lambda files: place.submit(
            place.manifest(files, "expert", worker=place.swarm.coordinator.peer_id)
        ),
        "manifest: Invalid JSON": lambda _files: place.submit_bytes(b"\x00 no manifest"),
        "manifest: kind: Field required": lambda _files: place.submit_bytes(b"{}"),
        "manifest: 16385 bytes": lambda _files: place.submit_bytes(b" " * 16_385),
    }
    for number, (reason, hand_in) in enumerate(cases.items()):
        if number:
            place.lease(place.make.spec(rng_seed=number))
        ref = hand_in(sound(place.spec, place.spec.train.num_steps))
        state, said = await place.until_decided(ref)
        assert state == "refused", reason
        assert reason in said
        assert place.standing().state is AssignmentState.OPEN
        assert place.standing().excluded == {place.worker}
    await place.until(lambda: not set(place.store.digests()))


def long_header(place: Place, files: Files) -> BlobRef:
    """A header of 8 bytes more than there may be, in a file that is no larger than it may be."""
    path = files.written(place.swarm.folder / "long")["model.safetensors"]
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].ljust(tensorfiles.MAX_HEADER_BYTES + 8)
    body = data[8 + length : -8]
    return place.theirs.add_bytes(len(header).to_bytes(8, "little") + header + body)


async def test_a_training_checkpoint_that_nobody_could_go_on_from_is_refused(place: Place) -> None:
    await place.connect()

    def negative(files: Files) -> Files:
        name = "exp_avg_sq.model.norm.weight"
        return replace(files, optimizer={**files.optimizer, name: -files.optimizer[name]})

    def state(data: bytes) -> Callable[[Files], Files]:
        return lambda files: replace(files, state=data)

    def of_step(step: int) -> Callable[[Files], Files]:
        return lambda files: replace(files, state=sound(files.spec, step).state)

    def curve(*steps: int) -> Callable[[Files], Files]:
        points = [{"step": step, "loss": 1.0} for step in steps]
        return lambda files: replace(
            files, state=json.dumps({**json.loads(files.state), "curve": points}).encode()
        )

    cases: dict[str, Callable[[Files], Files]] = {
        "state.json: Value error, curve: steps [9]": curve(9),
        "state.json: Value error, curve: steps [2, 1]": curve(2, 1),
        "gate_proj.weight is ('F32', (32, 32)), expected ('F32', (64, 32))": narrower,
        "NaN or infinite": with_nan,
        "has negative values": negative,
        "state.json: Invalid JSON": state(b"step 4"),
        "state.json: Invalid JSON: recursion": state(b"[" * 4000),
        "state.json: spec: Field required": state(b"{}"),
        "state.json: step 19, expected": of_step(19),
        "state.json: 4097 bytes, expected at most 4096": state(b" " * 4097),
    }
    for step, (reason, spoil) in enumerate(cases.items(), start=1):
        ref = place.announce(place.manifest(spoil(sound(place.spec, step)), "training"))
        decided, said = await place.until_decided(ref)
        assert decided == "refused", reason
        assert reason in said
    await place.until(lambda: not set(place.store.digests()))
    assert place.standing().state is AssignmentState.RUNNING
    ref, _ = place.training(10)
    assert await place.until_decided(ref) == ("durable", "")


async def test_a_file_larger_than_its_spec_allows_is_refused_without_asking_for_it(
    place: Place,
) -> None:
    await place.connect()
    limit = tensorfiles.max_bytes(tensorfiles.model_tensors(place.spec.shape))
    large = place.theirs.add_bytes(bytes(limit + 1))
    manifest = place.manifest(sound(place.spec, 20), "expert", blobs={"model.safetensors": large})
    state, reason = await place.until_decided(place.submit(manifest))
    assert state == "refused"
    assert reason == f"model.safetensors: {limit + 1} bytes, expected at most {limit}"
    assert large.digest not in place.asked


async def test_bytes_that_do_not_answer_to_their_digest_are_never_durable(place: Place) -> None:
    await place.connect()
    ref, manifest = place.training(5)
    model = manifest.blob("model.safetensors")
    path = place.theirs.path(model.digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    await place.until(lambda: model.digest in place.wanted())
    assert place.decided(ref)[0] == "announced"
    assert not place.store.has(model.digest)
    asked, until = place.asked.count(model.digest), place.clock() + 20
    await place.until(lambda: place.clock() > until)
    assert place.asked.count(model.digest) == asked, "a liar is not asked again"
    assert place.decided(ref)[0] == "announced"


async def test_what_is_here_under_another_size_is_refused_and_not_read(place: Place) -> None:
    ours = place.store.add_bytes(bytes(1 << 20))
    lie = BlobRef(digest=ours.digest, size=100)
    names = f"{ours.digest}: 100 bytes, expected {1 << 20}"
    with place.ledger.begin() as connection:
        beat = AssignmentHeartbeat(
            fencing=place.fencing,
            step=1,
            loss=None,
            tokens_per_second=0.0,
            checkpoint=lie,
            checkpoint_step=1,
        )
        queries.renew_lease(
            connection,
            place.assignment,
            beat,
            worker=place.worker,
            flops_per_second=1e9,
            now=place.clock(),
            heartbeat_seconds=HEARTBEAT_SECONDS,
        )
    state, reason = await place.until_decided(lie)
    assert (state, names in reason) == ("refused", True)

    await place.connect()
    for step, name in enumerate(("state.json", "model.safetensors"), start=2):
        spoilt = place.manifest(sound(place.spec, step), "training", blobs={name: lie})
        state, reason = await place.until_decided(place.announce(spoilt))
        assert (state, names in reason) == ("refused", True)


async def test_words_that_no_ledger_can_keep_stop_no_refusal(place: Place) -> None:
    await place.connect()
    files = sound(place.spec, 3)
    path = files.written(place.swarm.folder / "named")["model.safetensors"]
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8 : 8 + length])
    first = min(tensors, key=lambda name: tensors[name]["data_offsets"])
    begin, end = tensors[first]["data_offsets"]
    tensors["\ud800\x00"] = {**tensors.pop(first), "data_offsets": [begin + 4, end + 4]}
    header = json.dumps(tensors).encode()
    spoilt = place.theirs.add_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    manifest = place.manifest(files, "training", blobs={"model.safetensors": spoilt})
    state, reason = await place.until_decided(place.announce(manifest))
    assert state == "refused"
    assert reason.startswith("model.safetensors: ")
    assert "begins at byte" in reason

    key = "\x00" + "k" * 9000
    data = json.dumps({**manifest.model_dump(mode="json"), key: 1}).encode()
    state, reason = await place.until_decided(place.announce_bytes(data, 4))
    assert state == "refused"
    assert "\x00" not in reason
    assert len(reason) <= MAX_REASON
