"""The status of a run as text."""

from coordinator.scoring.results import render_table
from protocol.messages import StatusView


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
    if view.results is not None:
        lines += ["", render_table(view.results)]
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"
