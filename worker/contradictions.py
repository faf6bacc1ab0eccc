"""Limits that do not go together: refused where they can never be met, else explained. Pure."""

from collections.abc import Iterator, Sequence

from protocol.capability import Capability
from worker.manners.hours import LocalTime, are_open, next_change
from worker.manners.rules import in_words, local_time
from worker.screen import megabytes
from worker.settings import BadSetting, JoinSettings


def refuse_listening_over_http(listen: Sequence[str] | None, *, http_only: bool) -> None:
    """Raises BadSetting where an address is given and nobody listens."""
    if http_only and listen:
        raise BadSetting(
            f"--listen {listen[0]} with --http-only: without libp2p nothing listens; leave out one "
            "of the two"
        )


def refuse_gpu_memory(settings: JoinSettings, measured: Capability) -> None:
    """Raises BadSetting for a cap on a GPU that is not computed on, or of more than it has."""
    cap, total = settings.gpu_memory, measured.total_memory_bytes
    if cap is None:
        return
    if measured.device != "cuda":
        raise BadSetting(
            f"--gpu-memory: training would compute on {measured.device}, no CUDA GPU that torch "
            "can use is here; say --memory instead, or `hdee-worker check URL --device cuda` to "
            "learn what is missing"
        )
    if cap.of(total) > total:
        raise BadSetting(
            f"--gpu-memory: {megabytes(cap.of(total))}, but {measured.device_name} has "
            f"{megabytes(total)}; say less, or a share such as 50%"
        )


def refuse_idle_beyond_the_stay(settings: JoinSettings) -> None:
    """Raises BadSetting where the worker leaves before its owner can have been away for so long."""
    idle, stay = settings.rules.idle_seconds, settings.stay_seconds
    if idle is not None and stay is not None and idle >= stay:
        raise BadSetting(
            f"--only-when-idle {in_words(idle)} with --for {in_words(stay)}: it would leave before "
            "you have been away for so long; say a longer --for, or leave it out"
        )


def warnings(
    settings: JoinSettings, *, held_bytes: int, now: float, local: LocalTime = local_time
) -> Iterator[str]:
    """What will not go as the flags let hope, in words.

    `held_bytes`: what blobs occupy in the folder already. `now` is in Unix seconds.
    """
    hours, stay = settings.rules.hours, settings.stay_seconds
    if hours and stay is not None and not are_open(hours, local(now)):
        opens_at = next_change(hours, now=now, local=local)
        if opens_at is None or opens_at >= now + stay:
            yield (
                f"--hours {', '.join(map(str, hours))} with --for {in_words(stay)}: the hours "
                "begin after it has left, so that nothing will be trained; say a longer --for, or "
                "other hours"
            )
    if settings.disk_bytes is not None and held_bytes > settings.disk_bytes:
        yield (
            f"--disk {megabytes(settings.disk_bytes)}: blobs in {settings.folder} occupy "
            f"{megabytes(held_bytes)} already. Inputs of earlier work go once new ones need room; "
            "what the coordinator has yet to fetch stays. `hdee-worker blobs list` shows them"
        )
