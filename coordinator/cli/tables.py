"""What people see: tables and lines, made from the same values as --format json."""

from collections import Counter
from collections.abc import Sequence

from coordinator.ledger.queries import Entry
from coordinator.scheduling.requirements import short
from protocol.admin import ConsideredView, WhyView
from protocol.views import AssignmentView, WorkerView
from shared.tables import show, show_table
from shared.words import amount, duration

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def large(number: float, unit: str) -> str:
    """A large number with a prefix: `1.50 GFLOP`."""
    for factor, prefix in _PREFIXES:
        if number >= factor:
            return f"{number / factor:.2f} {prefix}{unit}"
    return f"{number:.0f} {unit}"


def show_workers(views: Sequence[WorkerView]) -> None:
    """Workers, and how many are in each state."""
    show_table(
        ("name", "id", "state", "device", ">memory", ">speed", "assignment", ">credit", ">seen"),
        [
            (
                view.name,
                short(view.worker),
                f"{view.state}, draining" if view.draining else view.state,
                view.device,
                amount(view.free_memory_bytes),
                large(view.flops_per_second, "FLOP/s"),
                ", ".join(view.assignments),
                large(view.credit, "FLOP"),
                f"{duration(view.age_seconds)} ago",
            )
            for view in views
        ],
    )
    show(_counted("worker", Counter(str(view.state) for view in views)))


def show_assignments(views: Sequence[AssignmentView]) -> None:
    """Assignments, and how many are in each state."""
    show_table(
        (
            "assignment",
            "state",
            "domain",
            ">width",
            ">step",
            ">done",
            "worker",
            ">since",
            "reason",
        ),
        [
            (
                view.assignment,
                view.state,
                f"{view.domain} {view.kind}",
                str(view.ffn_width) if view.lora_rank is None else f"rank {view.lora_rank}",
                f"{view.step}/{view.num_steps}",
                f"{100 * view.step / view.num_steps:.0f} %",
                "" if view.worker is None else short(view.worker),
                duration(view.age_seconds),
                f"backup of {view.backup_of} {view.reason}" if view.backup_of else view.reason,
            )
            for view in views
        ],
    )
    show(_counted("assignment", Counter(str(view.state) for view in views)))


def show_why(view: WhyView) -> None:
    """The account of a worker."""
    show(
        f"worker {view.name or short(view.worker)} ({view.worker}): {view.state}, seen "
        f"{duration(view.age_seconds)} ago, expected to do "
        f"{large(view.expected_flops_per_second, 'FLOP/s')}"
    )
    for blocker in view.blockers:
        show(f"  gets nothing now: {blocker}")
    if view.answer and not view.blockers:
        show(f"  if it asked now: {view.answer}")
    if view.waited_seconds is not None:
        show(
            f"  was told {duration(view.waited_seconds)} ago to leave open work to others; waits "
            f"{duration(view.patience_seconds)}, or half of the time that it needs itself"
        )
    limit = view.rate
    wait = f", the next in {limit.retry_after_seconds:.1f} s" if limit.retry_after_seconds else ""
    show(f"  rate limit: {limit.calls_left} calls left{wait}, {limit.calls_a_second:.2g} a second")
    if not view.considered:
        show("  no assignment is open")
        return
    show_table(
        ("assignment", "work", "fits", ">needs", ">has", ">finish", ">target", "because"),
        [_considered(one) for one in view.considered],
    )
    if view.next_after is not None:
        show(f"more: --after {view.next_after}")


def show_entries(entries: Sequence[Entry], *, times: Sequence[str]) -> None:
    """Entries, a line each; `times` are theirs, in words."""
    show_table(
        (">number", "at", "kind", "digest", "rows", "facts"),
        [
            (
                str(entry.number),
                at,
                entry.kind,
                entry.digest[:12],
                ", ".join(f"{count} {name}" for name, count in _tables_of(entry).items()),
                ", ".join(f"{name} {value}" for name, value in entry.facts.items() if value != ""),
            )
            for entry, at in zip(entries, times, strict=True)
        ],
    )


def _tables_of(entry: Entry) -> Counter[str]:
    return Counter(row.table for row in entry.rows)


def _considered(one: ConsideredView) -> tuple[str, ...]:
    words = f"{one.requirement}: {one.words}" if one.requirement else one.words
    return (
        one.assignment,
        one.description,
        "yes" if one.fits else "no",
        _quantity(one.needed, one.unit),
        _quantity(one.held, one.unit),
        "" if one.finish_seconds is None else duration(max(0.0, one.finish_seconds)),
        "" if one.target_seconds is None else duration(max(0.0, one.target_seconds)),
        words,
    )


def _quantity(number: float | None, unit: str) -> str:
    if number is None:
        return ""
    return amount(int(number)) if unit == "bytes" else duration(number)


def _counted(noun: str, counts: Counter[str]) -> str:
    total = sum(counts.values())
    parts = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return f"{total} {noun}{'' if total == 1 else 's'}" + (f": {parts}" if parts else "")
