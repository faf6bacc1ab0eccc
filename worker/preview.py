"""What a volunteer knows before anything starts: who asks for work, which, and what it takes.

For that the worker measures the machine, registers, and looks at the work without taking any.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from protocol.capability import Capability
from protocol.messages import LeaseRequest, RunInfo
from protocol.previews import Lack, Preview, PreviewedWork
from shared import sizing
from shared.clock import now
from shared.words import duration, size_words
from worker.client import CoordinatorClient, new_request_id
from worker.contact import Say, first_contact, persist
from worker.folder import WorkerFolder
from worker.manners.rules import available_seconds
from worker.measuring import measure_first
from worker.offers import problem_of
from worker.owndata.texts import OwnTexts
from worker.reachability import printable
from worker.screen import megabytes
from worker.settings import JoinSettings
from worker.sharing import labels_of

log = logging.getLogger(__name__)

MEASURING = "measuring this machine (some seconds; nothing else runs yet)"
LABEL = 12


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was learnt of a coordinator and its work, as the worker with id `worker`.

    `devices` are the names of several, of which `capability` is the first one's.
    `own_text`: the volunteer offers domains of text that lies on this machine. `own_shards` are the
    digests of what was made of it. `measured_with` are the steps that the speed was measured with,
    in words.
    """

    url: str
    worker: str
    info: RunInfo
    capability: Capability
    preview: Preview
    own_text: bool = False
    own_shards: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    measured_with: tuple[str, ...] = ()


async def take_look(settings: JoinSettings, folder: WorkerFolder, *, say: Say) -> Look:
    """Pins the coordinator, measures this machine, registers, looks. Nothing is leased.

    Raises WorkerError or CapabilityError.
    """
    client = CoordinatorClient(settings.url, folder.identity)
    try:
        info = await first_contact(client, say=say)
        folder.pin_coordinator(settings.url, info.coordinator)
        say(MEASURING)
        probed = measure_first(settings, folder.root, on_offer=info.on_offer)
        stays = available_seconds(settings.rules, stay_seconds=settings.stay_seconds, now=now())
        capability = probed.capability.model_copy(update={"available_seconds": stays})

        async def register() -> None:
            await client.register(
                info, capability, name=settings.name, invite=settings.invite, maddrs=()
            )

        await persist(register, say=say)
        own = OwnTexts(folder.root, settings.own_texts).digests()
        request = LeaseRequest(request_id=new_request_id(), capability=capability, cached=own)
        preview = await persist(lambda: client.preview(request), say=say)
    finally:
        await client.close()
    log.info("looked at the work of %s: %s, %s", info.run, preview.prospect, preview.reason)
    return Look(
        url=settings.url,
        worker=folder.identity.peer_id,
        info=info,
        capability=capability,
        preview=preview,
        own_text=bool(settings.own_texts),
        own_shards=own,
        devices=labels_of(settings.devices),
        measured_with=probed.steps,
    )


def describe(look: Look) -> str:
    """All of it for people: the coordinator, the work and what it takes, what leaves. Pure."""
    return "\n".join([_coordinator(look), *_work(look), *_leaving(look)])


def verdict(look: Look) -> str:
    """Whether this machine can be of use, and what keeps it from it. Pure."""
    preview = look.preview
    reason = printable(preview.reason)
    nothing_fits = "no work that is known fits this machine"
    first = {
        "now": "yes: there is work for this machine now",
        "later": f"yes, but not now: {reason}",
        "never": f"no: {nothing_fits if preview.lacks else reason}",
    }[preview.prospect]
    lacks = (f"  {_lacking(lack)}" for lack in preview.lacks)
    speed = speed_words(look.capability, look.measured_with)
    return "\n".join([first, *lacks, *([f"  speed: {speed}"] if look.measured_with else [])])


def speed_words(capability: Capability, measured_with: Sequence[str]) -> str:
    """How fast the device is, and with which steps that was measured. Pure."""
    speed = f"{capability.flops_per_second / 1e9:.1f} GFLOP/s"
    return f"{speed}, measured with steps of {'; and of '.join(measured_with)}"


def as_data(look: Look) -> dict[str, object]:
    """The same for programs."""
    return {
        "can_join": look.preview.prospect != "never",
        "coordinator": look.info.coordinator,
        "run": look.info.run,
        "worker": look.worker,
        "capability": look.capability.model_dump(mode="json"),
        "measured_with": list(look.measured_with),
        "preview": look.preview.model_dump(mode="json"),
    }


def download_bytes(work: PreviewedWork, *, own_shards: Collection[str] = ()) -> int:
    """Bytes to fetch before training starts, as long as only own text is here. Pure."""
    size = 0 if work.shard.digest in own_shards else work.shard.size
    if work.parent is not None:
        size += work.parent.manifest.blob("model.safetensors").size
    if work.resume is not None:
        size += sum(file.blob.size for file in work.resume.files)
    return size


def train_seconds(work: PreviewedWork, capability: Capability) -> float:
    """How long the rest of the training takes at the measured speed. Pure."""
    left = work.spec.train.num_steps - (0 if work.resume is None else work.resume.step)
    return left * sizing.step_flops(work.spec) / capability.flops_per_second


def _coordinator(look: Look) -> str:
    return "\n".join(
        [
            f"coordinator {look.info.coordinator}",
            f"{'':<{LABEL}}This is its fingerprint, as the operator knows it. It is remembered: "
            "nobody else",
            f"{'':<{LABEL}}will be believed at {look.url}.",
            _line("run", f"{look.info.run}, {look.preview.unfinished} assignment(s) not finished"),
            _line("you", f"{look.worker} in its tables"),
            *_devices(look),
        ]
    )


def _devices(look: Look) -> list[str]:
    if not look.devices:
        return []
    return [
        _line("devices", f"{', '.join(look.devices)}: each takes work of its own;"),
        _line("", "what follows is what the first one gets and takes"),
    ]


def _work(look: Look) -> list[str]:
    work, capability = look.preview.work, look.capability
    machine = f"{capability.device_name} ({capability.device}), {capability.num_threads} thread(s)"
    if work is None:
        return [
            "",
            f"What would run now: nothing, {printable(look.preview.reason)}.",
            *(_line("", _lacking(lack)) for lack in look.preview.lacks),
            _line("machine", f"{machine}, {_memory(capability)}"),
            *_speed(look),
        ]
    spec, start = work.spec, "" if work.resume is None else f", from step {work.resume.step}"
    down = download_bytes(work, own_shards=look.own_shards)
    checkpoints = (
        f"and {megabytes(sizing.checkpoint_bytes(spec))} a training checkpoint, one in "
        f"{duration(work.checkpoint_seconds)} at most"
    )
    if work.shard.digest in look.own_shards:
        checkpoints = "and no training checkpoint: it is on your own text, which stays here"
    peak = work.memory_bytes or sizing.training_memory_bytes(spec, device=capability.device)
    lines = [
        "",
        "What would run now:",
        _line("work", f"the {spec.kind} of domain {spec.domain}: "
              f"{size_words(spec.shape, spec.lora)}, {spec.train.num_steps} steps{start}"),
        _line("why you", printable(work.reason)),
        _line("time", f"about {duration(train_seconds(work, capability))} at the speed measured,"),
        _line("", "then the next work, until the run is finished or you say stop"),
        _line("memory", f"at most {megabytes(peak)} while it trains, {_memory(capability)}"),
        _line("machine", machine),
        *_speed(look),
        _line("disk", f"at most {megabytes(sizing.disk_bytes(spec) + down)}"),
        _line("down", f"{megabytes(down)} before it starts"),
        _line("up", f"at most {megabytes(sizing.expert_bytes(spec))} at the end, {checkpoints}"),
    ]  # fmt: skip
    problem = problem_of(work, capability)
    return lines if problem is None else [*lines, _line("problem", f"not taken: {problem}")]


def _speed(look: Look) -> list[str]:
    if not look.measured_with:
        return []
    return [_line("speed", speed_words(look.capability, look.measured_with))]


def _leaving(look: Look) -> list[str]:
    return [
        "",
        "What leaves this machine:",
        "  - the weights that were trained, and training checkpoints of them",
        "  - how far training is, how fast, and its loss; name, memory, free disk and speed of the",
        f"    device ({look.capability.flops_per_second / 1e9:.1f} GFLOP/s); the address that it "
        "calls from",
        "  - to other peers: text and experts of the run that were fetched from it",
        "Nothing else: "
        + (
            "the text that you offer stays here, and no other file of yours is read."
            if look.own_text
            else "none of your files is read."
        ),
    ]


def _memory(capability: Capability) -> str:
    free, total = capability.free_memory_bytes, capability.total_memory_bytes
    return f"{megabytes(free)} of {megabytes(total)} to be had"


def _lacking(lack: Lack) -> str:
    return f"{printable(lack.description)}: {printable(lack.words)}"


def _line(label: str, text: str) -> str:
    return f"  {label:<{LABEL - 2}}{text}"
