"""A report as one HTML page that needs nothing else, and as JSON with the same numbers."""

import base64
import hashlib
import json

from jinja2 import Environment, PackageLoader, StrictUndefined

from coordinator.report.forms import slug, visible, written
from coordinator.report.values import Figure, Report, Table

TEMPLATE = "page.html"

SIGNS = {
    "best": ("★", "better than every other column, by each interval"),
    "better": ("▼", "better than the reference, by the interval"),
    "worse": ("▲", "worse than the reference, by the interval"),
    "tie": ("=", "tie by construction: the same expert"),
    "bound": ("≤", "a bound, no method"),
}
"""What stands beside a marked cell, and what it means. Unclear cells have no sign."""


def render_page(report: Report) -> str:
    """The page: styles inside, figures inside as PNG, no script, no reference to anything else.

    All text is escaped: names of workers and tokens of texts are strangers' words.
    """
    environment = Environment(
        loader=PackageLoader("coordinator.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "written": written,
        "visible": visible,
        "slug": slug,
        "embedded": embedded,
    }
    return environment.get_template(TEMPLATE).render(report=report, signs=SIGNS)


def report_json(report: Report, *, runs: list[dict[str, object]]) -> bytes:
    """report.json: tables as records under their names, figures as files with their digests."""
    contents = {
        "title": report.title,
        "software": report.software,
        "runs": runs,
        "summary": list(report.summary),
        "commands": list(report.commands),
        "tables": {table.name: _table_json(table) for table in report.all_tables()},
        "figures": {figure.name: _figure_json(figure) for figure in report.all_figures()},
    }
    text = json.dumps(contents, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8") + b"\n"


def embedded(png: bytes) -> str:
    """A PNG as the address of itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _table_json(table: Table) -> dict[str, object]:
    return {"title": table.title, "note": table.note, "rows": table.records()}


def _figure_json(figure: Figure) -> dict[str, object]:
    return {
        "title": figure.title,
        "alt": figure.alt,
        "note": figure.note,
        "file": figure.file,
        "sha256": hashlib.sha256(figure.png).hexdigest(),
        "tables": [table.name for table in figure.tables],
    }
