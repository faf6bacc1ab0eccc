"""A worker reads the answers of a newer coordinator, but never half of what a digest covers."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from protocol.messages import LeaseAnswer, Offer
from worker.answers import Outdated, read_answer


@pytest.fixture
def answer(make) -> dict[str, Any]:
    spec = make.spec()
    offer = Offer(
        assignment="a" + "0" * 16,
        fencing=1,
        expires_in=20.0,
        spec=spec,
        shard=make.blob("shard"),
        parent=None,
        resume=make.manifest(spec, "12D3KooWGRUZtZpHdhCmpPHYmHmQ1EhQTpiRQHTJGPNEZxhBhZTM"),
        checkpoint_seconds=5.0,
        reason="",
    )
    told = LeaseAnswer(offer=offer, reason="", retry_after_seconds=0.0)
    return json.loads(told.model_dump_json())


def read(answer: dict[str, Any]) -> LeaseAnswer:
    return read_answer(json.dumps(answer).encode(), LeaseAnswer)


def test_a_field_that_came_later_is_left_out(answer: dict[str, Any]) -> None:
    expected = read(answer)
    answer["mood"] = "fine"
    answer["offer"]["shapes"] = [1]
    answer["offer"]["shard"]["colour"] = "red"
    assert read(answer) == expected


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("offer", "spec"), "ExpertSpec with dropout"),
        (("offer", "spec", "train"), "ExpertSpec with dropout"),
        (("offer", "resume"), "CheckpointManifest with dropout"),
        (("offer", "resume", "files", 0), "CheckpointManifest with dropout"),
    ],
)
def test_an_unknown_field_under_a_digest_asks_for_newer_software(
    answer: dict[str, Any], path: tuple[str | int, ...], words: str
) -> None:
    place: Any = answer
    for part in path:
        place = place[part]
    place["dropout"] = 0.1
    with pytest.raises(Outdated, match=f"{words}.*pip install --upgrade hdee"):
        read(answer)


def test_what_is_no_answer_stays_one_that_is_refused(answer: dict[str, Any]) -> None:
    del answer["offer"]["fencing"]
    with pytest.raises(ValidationError):
        read(answer)
