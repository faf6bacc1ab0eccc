"""One report, written once for all tests that read it."""

import json

import pytest

from coordinator.report.writing import write_report
from tests.outcomes import HARMFUL_TOKENS, HARMFUL_WORKER, SCHEMES, Case, make_results, write_run
from tests.reported import Reported


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """Two replicates with everything that a report can have, and names that mean harm."""
    folder = tmp_path_factory.mktemp("report")
    sources = {}
    for number in (1, 2):
        case = Case(
            own=4,
            held_out=1,
            schemes=SCHEMES[:2],
            rounds=2,
            has_probes=True,
            rng_seed=number,
            worker=HARMFUL_WORKER,
            tokens=HARMFUL_TOKENS,
        )
        sources[f"{number}.toml"] = write_run(folder / str(number), make_results(case))
    written = write_report(sources, into=folder / "report", commands=["make <it> & 'again'"])
    return Reported(
        folder=folder / "report",
        page=written.page.read_text(),
        numbers=json.loads(written.numbers.read_bytes()),
    )
