"""Limits that do not go together, each with what to do instead."""

from datetime import UTC, datetime

import pytest

from worker.contradictions import refuse_gpu_memory, warnings
from worker.manners.hours import parse_hours
from worker.manners.rules import Rules
from worker.settings import BadSetting, Cap, JoinSettings

URL = "http://127.0.0.1:1"
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
HOUR = 3600.0


def utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, tz=UTC)


@pytest.fixture
def warned(tmp_path):
    def warned(*, held_bytes: int = 0, **flags) -> list[str]:
        settings = JoinSettings(url=URL, folder=tmp_path, **flags)
        return list(warnings(settings, held_bytes=held_bytes, now=NOON, local=utc))

    return warned


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_cap_on_gpu_memory_where_no_gpu_computes_is_refused_with_what_to_say(
    make, tmp_path, device
):
    settings = JoinSettings(url=URL, folder=tmp_path, gpu_memory=Cap(share=0.5))
    measured = make.capability().model_copy(update={"device": device})
    with pytest.raises(BadSetting, match=f"compute on {device}.* say --memory instead") as refused:
        refuse_gpu_memory(settings, measured)
    assert refused.value.exit_code == 2
    refuse_gpu_memory(JoinSettings(url=URL, folder=tmp_path), measured)


def test_a_cap_on_gpu_memory_beyond_what_it_has_is_refused(make, tmp_path):
    gpu = {"device": "cuda", "device_name": "GPU", "total_memory_bytes": 8 * 10**9}
    measured = make.capability().model_copy(update=gpu)
    with pytest.raises(BadSetting, match=r"--gpu-memory: 9.00 GB, but GPU has 8.00 GB"):
        refuse_gpu_memory(
            JoinSettings(url=URL, folder=tmp_path, gpu_memory=Cap(num_bytes=9 * 10**9)), measured
        )
    refuse_gpu_memory(
        JoinSettings(url=URL, folder=tmp_path, gpu_memory=Cap(num_bytes=8 * 10**9)), measured
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--http-only", "--listen", "/ip4/0.0.0.0/tcp/4001"), "with --http-only: without libp2p"),
        (("--only-when-idle", "2h", "--for", "1h"), "say a longer --for, or leave it out"),
        (("--upload", "0"), "at least"),
    ],
)
def test_what_can_never_be_met_is_refused_and_nothing_starts(run, joined, flags, words):
    code, out, err = run("join", URL, *flags)
    assert (code, out, joined) == (2, "", [])
    assert words in err
    assert len(err.splitlines()) == 1


def test_hours_that_begin_after_it_has_left_are_explained(warned):
    evening = Rules(hours=(parse_hours("22:00-07:00"),))
    (words,) = warned(rules=evening, stay_seconds=8 * HOUR)
    assert words.startswith("--hours 22:00-07:00 with --for 8 hours: ")
    assert warned(rules=evening, stay_seconds=11 * HOUR) == []
    assert warned(rules=evening) == []
    assert warned(rules=Rules(hours=(parse_hours("08:00-18:00"),)), stay_seconds=HOUR) == []


def test_a_cap_on_disk_below_what_is_used_is_explained(warned):
    (words,) = warned(disk_bytes=10**9, held_bytes=3 * 10**9)
    assert words.startswith("--disk 1.00 GB: blobs in ")
    assert "occupy 3.00 GB already" in words
    assert warned(disk_bytes=3 * 10**9, held_bytes=10**9) == []
    assert warned(held_bytes=10**12) == []


def test_a_warning_stands_before_what_join_does_and_stops_nothing(run, joined, tmp_path):
    blobs = tmp_path / "blobs" / "data"
    blobs.mkdir(parents=True)
    (blobs / ("0" * 64)).write_bytes(bytes(range(256)) * 60_000)
    code, _, err = run("join", URL, "--folder", tmp_path, "--disk", "10MB")
    assert (code, len(joined)) == (0, 1)
    assert err.startswith("hdee-worker: warning: --disk 10.0 MB: ")
