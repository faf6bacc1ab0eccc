"""Own data in a report: named as self-reported, and in nothing that is scored."""

from coordinator.report.own_tables import own_section
from coordinator.report.sections import report_of
from coordinator.report.study import Study
from coordinator.scoring.outcome import OwnDomainFacts
from tests.outcomes import Case, make_results

QUINCES = OwnDomainFacts(
    domain="quinces",
    worker="12D3KooW" + "A" * 44,
    state="accepted",
    num_train_tokens=35_188,
    perplexity_before=125.65,
    perplexity_after=2.66,
)


def test_own_domains_have_a_section_of_their_own_and_are_nowhere_else():
    plain = make_results(Case(own=3))
    assert own_section(Study(runs=(plain,))) is None
    study = Study(runs=(plain.model_copy(update={"own_domains": (QUINCES,)}),))
    report = report_of(study, commands=(), software="0")
    without = report_of(Study(runs=(plain,)), commands=(), software="0")
    (own,) = [section for section in report.sections if section.name == "own-data"]
    (table,) = own.tables
    assert "self-reported, not verified on its own domain" in table.title
    (record,) = table.records()
    assert (record["domain"], record["perplexity_after"]) == ("quinces", 2.66)
    assert record["train_tokens"] == 35_188
    others = [section for section in report.sections if section is not own]
    assert others == list(without.sections)
    assert report.summary == without.summary
    assert "quinces" not in repr(others)
