"""What a volunteer knows before anything starts: who asks for work, which, and what it takes.

For that the worker measures the machine, registers, and looks at the work without taking any.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

from protocol.capability import Capability
from protocol.messages import LeaseRequest, RunInfo
from protocol.previews import Lack, Preview, PreviewedWork
from protocol.specs import Kind
from shared import sizing
from shared.clock import now
from shared.words import duration, size_words
from worker.client import CoordinatorClient, new_request_id
from worker.contact import Say, first_contact, persist
from worker.cost import download_bytes, train_seconds
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
COLUMNS = 80

_WHAT: dict[Kind, str] = {
    "seed": "the seed, which the other models of the run start from",
    "expert": "its expert, the model for text of this kind",
    "dense": "one model for all texts, which the experts are compared with",
    "average": "the mean of other models",
    "pretrained": "a model from elsewhere, which the other models of the run start from",
}


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
    speed = f"{capability.flops_per_second / 1e9:.1f} GFLOP/s (billion calculations a second)"
    return f"{speed}, measured by training {'; and '.join(measured_with)}"


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


def _coordinator(look: Look) -> str:
    return "\n".join(
        [
            f"coordinator {look.info.coordinator}",
            _line(
                "",
                "This is its fingerprint: the operator of the run can tell you whether it is the "
                f"right one. It is remembered: nobody else will be believed at {look.url}.",
            ),
            _line("run", f"{look.info.run}, {look.preview.unfinished} piece(s) of work to finish"),
            _line("your id", look.worker),
            *_devices(look),
        ]
    )


def _devices(look: Look) -> list[str]:
    if not look.devices:
        return []
    words = f"{', '.join(look.devices)}: each takes work of its own; what follows is what the first"
    return [_line("devices", f"{words} one gets and takes")]


def _work(look: Look) -> list[str]:
    work, capability = look.preview.work, look.capability
    if work is None:
        return [
            "",
            fill(f"What would run now: nothing, {printable(look.preview.reason)}.", COLUMNS),
            *(_line("", _lacking(lack)) for lack in look.preview.lacks),
            *_machine(look),
        ]
    spec = work.spec
    down = download_bytes(work, own_shards=look.own_shards)
    peak = work.memory_bytes or sizing.training_memory_bytes(spec, device=capability.device)
    disk = f"{megabytes(sizing.disk_bytes(spec) + down)} of {megabytes(capability.free_disk_bytes)}"
    lines = [
        "",
        "What would run now:",
        _line("work", f'train a language model on the text "{spec.domain}": {_WHAT[spec.kind]}'),
        _line("size", _size(work)),
        _line("why you", printable(work.reason)),
        _line("time", f"about {duration(train_seconds(work, capability))} at the speed measured; "
              "then the next work, until the run is finished or you stop it (Ctrl-C)"),
        _line("memory", f"at most {megabytes(peak)} while it trains"),
        _line("disk", f"at most {disk} that are free for it"),
        _line("download", f"{megabytes(down)} before it starts"),
        _line("upload", _upload(look, work)),
        *_machine(look),
    ]  # fmt: skip
    problem = problem_of(work, capability)
    return lines if problem is None else [*lines, _line("problem", f"not taken: {problem}")]


def _size(work: PreviewedWork) -> str:
    spec = work.spec
    model = f"a model of {_count(sizing.num_parameters(spec.shape))} numbers"
    what = f"{model} (parameters; {size_words(spec.shape, None)})"
    if spec.lora is not None:
        adapter = f"{_count(sizing.trained_parameters(spec))} numbers (an adapter; "
        what = f"an addition of {adapter}{size_words(spec.shape, spec.lora)}) to {what}"
    done = "" if work.resume is None else f", of which {work.resume.step:,} are done"
    return f"{what}, trained in {spec.train.num_steps:,} steps{done}"


def _upload(look: Look, work: PreviewedWork) -> str:
    expert = f"at most {megabytes(sizing.expert_bytes(work.spec))} at the end, what was trained"
    if work.shard.digest in look.own_shards:
        return f"{expert}; no checkpoint before: it is on your own text, which stays here"
    return (
        f"{expert}; before that a checkpoint of {megabytes(sizing.checkpoint_bytes(work.spec))}, "
        "a saved state that another computer could go on from, at most every "
        f"{duration(work.checkpoint_seconds)}"
    )


def _machine(look: Look) -> list[str]:
    found = look.capability
    free, total = megabytes(found.free_memory_bytes), megabytes(found.total_memory_bytes)
    name = f"{found.device_name} ({found.device}), {found.num_threads} thread(s)"
    speed = [_line("speed", speed_words(found, look.measured_with))]
    return [
        _line("machine", f"{name}; the worker may use {free} of {total} of memory"),
        *(speed if look.measured_with else []),
    ]


def _leaving(look: Look) -> list[str]:
    speed = f"{look.capability.flops_per_second / 1e9:.1f} GFLOP/s"
    kept = "none of your files is read."
    if look.own_text:
        kept = "the text that you offer stays here, and no other file of yours is read."
    return [
        "",
        "What leaves this machine:",
        _item("what was trained (weights), and saved states of it on the way (checkpoints)"),
        _item("how far training is, how fast, and how well it goes (its loss)"),
        _item(
            f"name, memory, free disk and speed ({speed}) of the device; network addresses of this "
            "machine; the name that you gave the worker, and how long it stays"
        ),
        _item("to other computers of the run: its text and its models that this one fetched"),
        fill(f"Nothing else: {kept}", COLUMNS),
    ]


def _count(number: int) -> str:
    """`24,624`, or millions: `1.2 million`."""
    return f"{number:,}" if number < 1e6 else f"{number / 1e6:,.1f} million"


def _lacking(lack: Lack) -> str:
    return f"{printable(lack.description)}: {printable(lack.words)}"


def _line(label: str, text: str) -> str:
    return _filled(text, first=f"  {label:<{LABEL - 2}}", indent=LABEL)


def _item(text: str) -> str:
    return _filled(text, first="  - ", indent=4)


def _filled(text: str, *, first: str, indent: int) -> str:
    return fill(
        text,
        COLUMNS,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
