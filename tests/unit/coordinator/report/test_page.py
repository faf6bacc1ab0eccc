"""The page: whole in itself, with the numbers of report.json, and harmless whatever names say."""

import hashlib
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.report.page import render_page
from coordinator.report.sections import report_of
from coordinator.report.study import Study
from coordinator.report.values import Cell, Column, Report, Row, Table
from tests.outcomes import HARMFUL_TOKENS, HARMFUL_WORKER, SCHEMES, Case, make_results
from tests.reported import Page, Reported

REFERENCES = {"src", "href", "srcset", "action", "data", "poster", "background", "xlink:href"}


def test_every_tag_is_closed_in_order(reported: Reported):
    assert Page(reported.page).open == []


def test_the_page_refers_to_nothing_but_itself(reported: Reported):
    page = Page(reported.page)
    anchors = {found["id"] for _, found in page.tags if "id" in found}
    for tag, found in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name, value in found.items():
            assert not name.startswith("on")
            if name in REFERENCES:
                assert value is not None
                assert value.startswith("data:image/png;base64,") or value[1:] in anchors
    style = "".join(page.words[index] for index, word in enumerate(page.words) if "{" in word)
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_forbids_the_browser_to_load_anything():
    page = render_page(EMPTY)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page


def test_names_that_are_markup_are_shown_as_text(reported: Reported):
    page = Page(reported.page)
    assert "<script" not in reported.page
    text = "".join(page.words)
    assert "<script>alert('anna')</script> & co??" in text
    assert "\x00" not in reported.page
    assert "\u202e" not in reported.page
    assert HARMFUL_WORKER not in text
    assert "make <it> & 'again'" in text


def test_numbers_in_the_page_are_those_in_the_json(reported: Reported):
    page = Page(reported.page)
    tables = reported.numbers["tables"]
    assert len(tables) > 15
    for name, table in tables.items():
        expected = [
            float(value)
            for record in table["rows"]
            for key, value in record.items()
            if key != "marks" and isinstance(value, int | float)
        ]
        assert page.numbers[name] == expected, name


def test_every_name_is_given_once(reported: Reported):
    page = Page(reported.page)
    names = [found["id"] for _, found in page.tags if "id" in found]
    assert len(names) == len(set(names))


def test_every_figure_is_in_the_page_with_words_for_those_who_cannot_see_it(reported: Reported):
    images = [found for tag, found in Page(reported.page).tags if tag == "img"]
    figures = reported.numbers["figures"]
    assert [image["alt"] for image in images] == [one["alt"] for one in figures.values()]
    assert all(len(image["alt"] or "") > 40 for image in images)


def test_every_figure_names_the_tables_of_its_numbers(reported: Reported):
    for figure in reported.numbers["figures"].values():
        assert figure["tables"]
        assert set(figure["tables"]) <= set(reported.numbers["tables"])


def test_figures_lie_beside_the_page_as_the_json_says(reported: Reported):
    for name, figure in reported.numbers["figures"].items():
        data = (reported.folder / str(figure["file"])).read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n"), name
        assert len(data) > 2000
        assert hashlib.sha256(data).hexdigest() == figure["sha256"]


def test_the_json_has_seeds_digests_and_versions_of_every_run(reported: Reported):
    for number, run in enumerate(reported.numbers["runs"], start=1):
        assert run["rng_seed"] == number
        assert set(run["digests"]) == {"run_file", "tokenizer", "split_key"}
        assert "torch" in run["versions"]


def test_tokens_keep_their_text_in_the_json(reported: Reported):
    rows = reported.numbers["tables"]["posterior-1"]["rows"]
    assert [row["token"] for row in rows] == list(HARMFUL_TOKENS)


def test_a_missing_value_is_a_dash_and_null():
    table = Table(
        name="t",
        title="t",
        columns=(Column("a", "a"), Column("b", "b", "perplexity")),
        rows=(Row((Cell("x"), Cell(None))),),
    )
    assert ">–</td>" in render_page(replace(EMPTY, summary_tables=(table,)))
    assert table.records() == [{"a": "x", "b": None}]


@given(
    own=st.integers(1, 4),
    held_out=st.integers(0, 2),
    count=st.integers(1, 2),
    rounds=st.integers(1, 2),
    has_dense=st.booleans(),
    replicates=st.integers(1, 2),
)
@settings(max_examples=2, deadline=None)
def test_any_run_can_be_shown(
    own: int, held_out: int, count: int, rounds: int, has_dense: bool, replicates: int
):
    case = Case(
        own=own, held_out=held_out, schemes=SCHEMES[:count], rounds=rounds, has_dense=has_dense
    )
    runs = [make_results(replace(case, rng_seed=1 + seed)) for seed in range(replicates)]
    report = report_of(Study(runs=tuple(runs)), commands=[], software="0")
    page = Page(render_page(report))
    assert page.open == []
    assert {table.name for table in report.all_tables()} == set(page.numbers)


def test_a_run_with_nothing_but_scores_can_be_shown():
    results = make_results(Case(num_traces=0))
    bare = results.model_copy(
        update={
            "budgets": (),
            "comparisons": (),
            "digests": {},
            "versions": {},
            "schemes": {scheme: {} for scheme in results.schemes},
            "checkpoints": (),
        }
    )
    report = report_of(Study(runs=(bare,)), commands=[], software="0")
    assert report.all_figures() == ()
    assert report.summary[0].endswith("on 3 own and 2 held-out domains.")
    assert Page(render_page(report)).open == []


EMPTY = Report(
    title="Nothing",
    subtitle="",
    summary=(),
    summary_tables=(),
    sections=(),
    commands=(),
    software="0",
)
