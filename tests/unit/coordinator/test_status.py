"""The status of a run as text."""

from coordinator.status import render_status
from protocol.views import ResultTable, StatusView, TableRow

VIEW = StatusView(
    run="tiny",
    coordinator="12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp",
    phase="training",
    phase_reason="",
    phase_age_seconds=5.0,
    paused=False,
    round=1,
    assignments={"open": 2, "running": 1, "accepted": 0},
    workers={},
    experts_accepted=1,
    experts_planned=4,
    eta_seconds=63.4,
    perplexities=(),
    results=None,
    results_age_seconds=None,
    software_version="0.1.0",
    protocol_version=1,
    server_time=1.0,
    uptime_seconds=2.0,
    roles={"scorer": 0.4, "api": 12.0},
)


def test_the_status_names_phase_counts_eta_and_the_age_of_each_role() -> None:
    lines = render_status(VIEW).splitlines()
    assert lines[0] == "run tiny: training for 5 s"
    assert lines[1].split(maxsplit=1) == ["experts", "1 of 4 accepted, ETA 63 s"]
    assert lines[2].split(maxsplit=1) == ["assignments", "2 open, 1 running"]
    assert lines[3].split() == ["workers", "none"]
    assert lines[4].split(maxsplit=1) == ["roles", "api seen 12 s ago, scorer seen 0 s ago"]
    assert lines[5].endswith("software 0.1.0, protocol 1")


def test_a_reason_stands_beside_its_phase_and_an_unknown_end_is_called_so() -> None:
    view = VIEW.model_copy(
        update={"phase": "stalled", "phase_reason": "nobody fits", "eta_seconds": None}
    )
    text = render_status(view)
    assert text.startswith("run tiny: stalled for 5 s (nobody fits)\n")
    assert "ETA unknown" in text


def test_the_newest_results_follow() -> None:
    table = ResultTable(
        columns=("seed M",),
        rows=(
            TableRow(domain="python", perplexity={"seed M": 7.25}, bits_per_byte={"seed M": 1.5}),
        ),
    )
    text = render_status(VIEW.model_copy(update={"results": table}))
    assert "python" in text
    assert "seed M" in text
    assert "7.25" in text
