"""What the volunteer reads: the offer, the progress line, and lines that stay."""

from datetime import datetime

import pytest

from protocol.messages import Offer, Parent
from shared.sizing import step_flops
from worker.screen import (
    TextScreen,
    clock,
    describe_offer,
    describe_stay,
    megabytes,
    progress_line,
)

EVENT = {
    "event": "progress",
    "step": 34,
    "num_steps": 100,
    "loss": 4.5123,
    "tokens_per_second": 5120.4,
    "eta_seconds": 13.2,
}


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0:00"), (0, "0:00"), (59.6, "1:00"), (65, "1:05"), (3599, "59:59"), (7384, "2:03:04")],
)
def test_a_clock_shows_minutes_and_from_an_hour_on_hours(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_a_stay_says_until_when_by_the_clock_on_the_wall() -> None:
    begin = datetime(2026, 11, 22, 10, 30).astimezone()
    words = describe_stay(28_800.0, now=begin.timestamp())
    assert words.startswith("staying until 2026-11-22 18:30 (8:00:00 from now)")


@pytest.mark.parametrize(
    ("num_bytes", "shown"), [(0, "0.0 MB"), (12_345_678, "12.3 MB"), (1e9, "1.00 GB")]
)
def test_bytes_are_shown_in_megabytes_and_from_a_thousand_on_in_gigabytes(
    num_bytes: float, shown: str
) -> None:
    assert megabytes(num_bytes) == shown


def test_progress_is_one_line_with_step_speed_time_loss_and_what_is_durable() -> None:
    assert (
        progress_line(EVENT, durable_step=30)
        == "step 34/100  5120 tokens/s  0:13 left  loss 4.512  durable at step 30"
    )
    assert progress_line({**EVENT, "loss": None}, durable_step=None).endswith(
        "loss -  nothing durable yet"
    )


def test_lines_have_no_escape_codes_and_progress_comes_once_in_a_while(
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = TextScreen("anna")
    screen.progress(EVENT, durable_step=30)
    screen.progress(EVENT, durable_step=30)
    screen.say("one\ntwo")
    line = progress_line(EVENT, durable_step=30)
    assert capsys.readouterr().out == f"[anna] {line}\n[anna] one\n[anna] two\n"


def test_an_offer_says_what_will_run_why_here_and_every_byte_that_comes(make) -> None:
    worker = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
    seed, spec = make.spec(), make.spec(parent=make.spec().digest, ffn_width=48)
    offer = Offer(
        assignment="a" + "0" * 16,
        fencing=2,
        expires_in=20.0,
        spec=spec,
        shard=make.blob("shard", 3_000_000),
        parent=None,
        resume=None,
        checkpoint_seconds=5.0,
        reason="you are the fastest",
    )
    text = describe_offer(offer, make.capability())
    assert "expert for python: FFN 48, 20 steps [a0000000000000000]" in text
    assert "why you: you are the fastest" in text
    assert "down 3.0 MB, up" in text
    assert "only weights and training state leave this machine" in text
    resume = make.manifest(spec, worker, step=7)
    parent = Parent(shape=seed.shape, manifest=make.manifest(seed, worker))
    large = make.blob("model", 5_000_000)
    file = parent.manifest.files[0].model_copy(update={"blob": large})
    parent = Parent(
        shape=seed.shape, manifest=parent.manifest.model_copy(update={"files": (file,)})
    )
    follow_up = offer.model_copy(update={"resume": resume, "parent": parent})
    text = describe_offer(follow_up, make.capability())
    assert "20 steps, from step 7 [" in text
    slow = make.capability(flops_per_second=step_flops(spec))
    assert "about 0:20 and" in describe_offer(offer, slow)
    assert "about 0:13 and" in describe_offer(follow_up, slow)
    assert f"down {megabytes(3_000_000 + 5_000_000 + 3 * 1000)}, up" in text


def test_own_text_is_not_fetched_and_no_training_checkpoint_on_it_leaves(make) -> None:
    offer = Offer(
        assignment="a" + "0" * 16,
        fencing=1,
        expires_in=20.0,
        spec=make.spec(),
        shard=make.blob("own", 3_000_000),
        parent=None,
        resume=None,
        checkpoint_seconds=5.0,
        reason="it is on your own data",
    )
    text = describe_offer(offer, make.capability(), own_shards=(offer.shard.digest,))
    assert "down 0.0 MB, up" in text
    assert "training checkpoint" not in text
    assert "only weights leave this machine" in text
