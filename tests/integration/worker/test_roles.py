"""The api and network roles as processes: how they end."""

import os
import signal
from typing import Any

import psutil
import pytest

from coordinator.ledger import queries
from coordinator.text.prepared import read_prepared


def test_a_role_whose_port_is_taken_says_so_in_its_log_and_ends(roles: Any) -> None:
    for role in ("api", "network"):
        assert roles.twin(role) == 1
        log = (roles.folders.logs / f"{role}.log").read_text()
        assert "cannot listen at 127.0.0.1:" in log
        assert "Address already in use" in log
    assert roles.ready()


@pytest.mark.parametrize("signal_number", [None, signal.SIGTERM])
def test_a_role_ends_in_good_order_with_its_parent_or_when_asked(
    roles: Any, tools: Any, signal_number: int | None
) -> None:
    network = psutil.Process(roles.processes["network"].pid)
    daemons = tools.wait_for(
        "it has its libp2p daemon",
        lambda: [child for child in network.children(recursive=True) if "p2pd" in child.name()],
    )
    try:
        for role in ("api", "network"):
            ended = roles.orphan(role) if signal_number is None else roles.ask(role, signal_number)
            assert ended == 0
    finally:
        for role in {"api", "network"} - roles.processes.keys():
            roles.start(role)
    assert not any(daemon.is_running() for daemon in daemons)
    tools.wait_for("the roles are back", roles.ready)


def test_the_network_role_deletes_what_nothing_names_and_keeps_what_prepare_made(
    roles: Any, tools: Any
) -> None:
    left = roles.store.add_bytes(b"left by a crash long ago")
    for mark in (roles.store.root / "marks").iterdir():
        os.utime(mark, (0, 0))
    prepared = read_prepared(roles.folders.prepared)
    assert prepared is not None
    with roles.ledger.read() as connection:
        before = set(roles.store.digests())
        named = before - set(queries.unneeded(connection, before))
    named.add(prepared.prepared.tokenizer.digest)
    roles.kill("network")
    roles.start("network")
    tools.wait_for("it is swept", lambda: not roles.store.has(left.digest))
    # Other tests leave work behind that nothing names any more: it may go as well.
    assert named <= set(roles.store.digests())
    tools.wait_for("the roles are back", roles.ready)
