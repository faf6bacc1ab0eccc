"""The status of a run as text."""

from coordinator.scoring.table import render_table
from protocol.owndata import OwnDomainView
from protocol.views import StatusView


def render_status(view: StatusView) -> str:
    """Some lines for a terminal: phase, assignments, workers, experts, roles, newest results."""
    eta = "unknown" if view.eta_seconds is None else f"{view.eta_seconds:.0f} s"
    lines = [
        f"run {view.run}: {view.phase} for {view.phase_age_seconds:.0f} s"
        + (f" ({view.phase_reason})" if view.phase_reason else ""),
        f"  experts      {view.experts_accepted} of {view.experts_planned} accepted, ETA {eta}",
        f"  assignments  {_counts(view.assignments)}",
        f"  workers      {_counts(view.workers)}",
        "  roles        "
        + ", ".join(f"{role} seen {age:.0f} s ago" for role, age in sorted(view.roles.items())),
        f"  coordinator  {view.coordinator}, software {view.software_version}, "
        f"protocol {view.protocol_version}",
    ]
    lines += [
        f"  {row.checkpoint} on {row.domain}: dev perplexity {row.perplexity:.2f}, "
        f"{row.age_seconds:.0f} s ago"
        for row in view.perplexities[:6]
    ]
    if view.own_domains:
        lines += ["own data (self-reported, not verified on its own domain):"]
        lines += [f"  {_own_domain(own)}" for own in view.own_domains]
    if view.results is not None:
        lines += ["", render_table(view.results)]
    return "\n".join(lines)


def _own_domain(view: OwnDomainView) -> str:
    said = ""
    if view.perplexity_before is not None and view.perplexity_after is not None:
        said = f", dev perplexity {view.perplexity_before:.6g} before"
        said += f", {view.perplexity_after:.6g} after"
    why = f" ({view.reason})" if view.reason and view.state in ("accepted", "refused") else ""
    return f"{view.domain}: {view.state}{why}, {view.num_train_tokens} train tokens{said}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"
