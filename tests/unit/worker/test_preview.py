"""What a volunteer reads before the first start: all facts, in anybody's words, in 80 columns."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.messages import RunInfo
from protocol.previews import Lack, Preview, PreviewedWork
from protocol.specs import ExpertSpec, Lora
from worker.preview import COLUMNS, Look, describe, speed_words

PEER = "12D3KooW" + "C" * 44
WORKER = "12D3KooW" + "W" * 44
STEPS = "4 layers of 128 (FFN 512) on 4 x 256 tokens"
INFO = RunInfo(
    run="small",
    coordinator=PEER,
    protocol_version=1,
    software_version="1",
    bootstrap=(),
    server_time=1.0,
    heartbeat_seconds=10.0,
)
JARGON = ("lease", "assignment", "shard", "spec", "capability", "posterior", "libp2p", "domain")
"""Words of ours that a newcomer cannot know."""


def work_of(make: Any, spec: ExpertSpec, *, step: int | None = None, **facts: Any) -> PreviewedWork:
    values: dict[str, Any] = {
        "spec": spec,
        "shard": make.blob("shard", 3_000_000),
        "parent": None,
        "resume": None if step is None else make.manifest(spec, WORKER, step=step),
        "checkpoint_seconds": 600.0,
        "reason": "64-wide python seed: needs 421 MB, you offer 2.00 GB; you finish it in time",
    }
    return PreviewedWork(**{**values, **facts})


def look_at(make: Any, work: PreviewedWork | None, **facts: Any) -> Look:
    preview = Preview(
        prospect="never" if work is None else "now",
        work=work,
        reason="nothing fits" if work is None else work.reason,
        unfinished=8,
        lacks=facts.pop("lacks", ()),
    )
    values: dict[str, Any] = {
        "url": "http://127.0.0.1:40457",
        "worker": WORKER,
        "info": INFO,
        "capability": make.capability(),
        "preview": preview,
        "measured_with": (STEPS,),
    }
    return Look(**{**values, **facts})


def plain(shown: str) -> str:
    """As if the screen were wide enough for each sentence."""
    return " ".join(shown.split())


def test_all_that_work_takes_and_gives_is_told(make) -> None:
    shown = plain(describe(look_at(make, work_of(make, make.spec(num_steps=1_000_000)))))
    for words in (
        f"coordinator {PEER} This is its fingerprint: ",
        "nobody else will be believed at http://127.0.0.1:40457.",
        "run small, 8 piece(s) of work to finish",
        f"your id {WORKER}",
        'on the text "python": the seed, which the other models of the run start from',
        "37,024 numbers (parameters; FFN 64), trained in 1,000,000 steps",
        "why you 64-wide python seed: needs 421 MB",
        "time about 3.3 h at the speed measured; then the next work, until",
        "memory at most 421.5 MB while it trains",
        "disk at most 7.1 MB of 10.00 GB that are free for it",
        "download 3.0 MB before it starts",
        "upload at most 0.2 MB at the end, what was trained; before that a checkpoint of 0.6 MB",
        "at most every 10.0 min",
        "machine test (cpu), 1 thread(s); the worker may use 2.00 GB of 4.00 GB of memory",
        f"speed 1.0 GFLOP/s (billion calculations a second), measured by training {STEPS}",
        "Nothing else: none of your files is read.",
    ):
        assert words in shown
    assert "problem" not in shown


def test_a_newcomer_needs_no_word_of_ours(make) -> None:
    expert = make.spec(parent="0" * 64)
    dense = expert.model_copy(update={"kind": "dense", "domain": "mixed"})
    looks = [look_at(make, work_of(make, spec)) for spec in (make.spec(), expert, dense)]
    for shown in (describe(look).lower() for look in (*looks, look_at(make, None))):
        assert not [word for word in JARGON if word in shown]


def test_work_that_goes_on_and_an_adapter_say_so(make) -> None:
    spec = make.spec(parent="0" * 64, num_steps=20)
    shown = plain(describe(look_at(make, work_of(make, spec, step=5))))
    assert "trained in 20 steps, of which 5 are done" in shown
    assert "its expert, the model for text of this kind" in shown
    lora = {"trains": "lora", "lora": Lora(rank=2, alpha=2.0)}
    adapter = work_of(make, spec.model_copy(update=lora))
    shown = plain(describe(look_at(make, adapter)))
    assert "numbers (an adapter; rank 2) to a model of 37,024 numbers (parameters; FFN 64)" in shown


def test_own_text_and_several_devices_have_their_words(make) -> None:
    work = work_of(make, make.spec())
    own = look_at(make, work, own_text=True, own_shards=(work.shard.digest,))
    shown = plain(describe(own))
    assert "no checkpoint before: it is on your own text, which stays here" in shown
    assert "Nothing else: the text that you offer stays here, and no other file" in shown
    assert "download 0.0 MB before it starts" in shown
    several = look_at(make, work, devices=("cpu 1", "cpu 2"))
    assert "devices cpu 1, cpu 2: each takes work of its own;" in plain(describe(several))


def test_a_device_whose_part_of_the_disk_is_too_small_is_told(make) -> None:
    part = make.capability(free_disk_bytes=5_000_000)
    shown = plain(describe(look_at(make, work_of(make, make.spec()), capability=part)))
    assert "of 5.0 MB that are free for it" in shown
    assert "problem not taken: needs 7 MB of disk, 5 MB are free" in shown


WORDS = st.text("abc -0123:;()", max_size=300)


@given(
    reason=WORDS,
    name=st.text("abc ", min_size=1, max_size=64),
    lacking=st.lists(WORDS, max_size=3),
    num_steps=st.integers(2, 10**9),
    takes=st.booleans(),
)
def test_it_fits_into_eighty_columns(make, reason, name, lacking, num_steps, takes) -> None:
    reason, lacking = (cut(reason), [cut(one) for one in lacking])
    lacks = tuple(
        Lack(description="x", requirement="disk", words=one, needed=None, held=None, unit="")
        for one in lacking
    )
    work = work_of(make, make.spec(num_steps=num_steps), reason=reason) if takes else None
    capability = make.capability(device_name=name)
    shown = describe(look_at(make, work, lacks=lacks, capability=capability))
    assert max(map(len, shown.splitlines())) <= COLUMNS
    for words in [reason if takes else "", *([] if takes else lacking), name]:
        assert plain(words) in plain(shown)


def cut(text: str) -> str:
    """With no word that is longer than a line has room for."""
    return " ".join(word[:40] for word in text.split())


@pytest.mark.parametrize("count", [1, 2])
def test_the_speed_names_all_that_it_was_measured_with(make, count) -> None:
    words = speed_words(make.capability(flops_per_second=2.5e12), (STEPS,) * count)
    assert words.startswith("2500.0 GFLOP/s (billion calculations a second)")
    assert words.count(STEPS) == count
