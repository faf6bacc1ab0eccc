"""What no ledger can keep is refused with the message, before it costs a transaction."""

import pytest
from pydantic import ValidationError

from protocol.messages import Release


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"detail": "half a\x00 word"}, "detail"),
        ({"fencing": 2**31}, "fencing"),
        ({"fencing": 0}, "fencing"),
    ],
)
def test_what_postgresql_cannot_keep_is_refused_by_name(change, words):
    release = {"fencing": 1, "reason": "unavailable", "detail": "two\nlines", "checkpoint": None}
    Release.model_validate(release)
    with pytest.raises(ValidationError, match=words):
        Release.model_validate(release | change)
