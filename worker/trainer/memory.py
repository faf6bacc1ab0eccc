"""The memory of a training: the owner's cap made real, the peak, and smaller micro-batches."""

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from protocol.capability import Device

CONTEXT_BYTES = 600_000_000
"""What a CUDA context takes beside the allocations that torch counts: as `sizing` reckons."""

_GRAIN = 1 << 16
"""Numbers for which torch takes another thread, and more."""

_STATUS = Path("/proc/self/status")

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""


def smaller(micro_batch: int) -> int | None:
    """The next micro-batch to try where one does not fit: the largest divisor that halves it.

    None for 1: nothing is smaller. A divisor, so that every micro-batch of a step stays equally
    large and the loss is the same mean of the same sequences. Pure.
    """
    return next((size for size in range(micro_batch // 2, 0, -1) if micro_batch % size == 0), None)


def limit(device: Device, memory_bytes: int) -> None:
    """Lets this process have no more than `memory_bytes` of the memory that `device` computes in.

    An allocation beyond that fails, as it does where there is no more memory, and that is an error
    that can be handled, where a killed process cannot. On a CPU the limit is on private memory
    (RLIMIT_DATA, Linux alone), such that it may grow by what is left of the cap now: pages of
    library code that are read later, which the system can drop at any time, come on top.
    """
    if device == "cuda":
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        share = max(0, memory_bytes - CONTEXT_BYTES) / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    elif device == "mps":
        share = memory_bytes / torch.mps.recommended_max_memory()
        torch.mps.set_per_process_memory_fraction(min(1.0, share))
    else:
        _start_threads()
        data, resident = _status("VmData"), _status("VmRSS")
        if data is not None and resident is not None:
            most = data + max(0, memory_bytes - resident)
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            if hard == resource.RLIM_INFINITY or most < hard:
                resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def peak_bytes(device: Device) -> int:
    """The most memory that this process has had at a time, of that which `device` computes in.

    On a CPU and for MPS, which shares memory with it: resident bytes of the whole process.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() + CONTEXT_BYTES
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def keep_freed() -> None:
    """Lets this process keep the memory that it frees, for its next step: glibc alone.

    Left to itself, glibc returns what a step freed to the system, which clears and maps every page
    of it again in the next step: some thousand page faults each time. The peak stays the same, and
    `give_back` returns it all. Blocks above 32 MiB, the most that glibc takes, come and go as ever.
    """
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_MMAP_THRESHOLD, 1 << 25)


def give_back(device: Device) -> None:
    """Returns freed memory to the device or the system, as far as that is possible."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()
    with suppress(OSError, AttributeError):
        # glibc keeps freed memory in pieces, which a limit counts.
        ctypes.CDLL(None).malloc_trim(0)


def _start_threads() -> None:
    """The threads that compute, whose stacks a limit counts: OpenMP ends a process without them."""
    torch.ones(torch.get_num_threads(), _GRAIN).add_(1.0)


def _status(field: str) -> int | None:
    """Bytes that Linux tells in a line of /proc/self/status; None elsewhere."""
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(f"{field}:")), None)
    return None if found is None else int(found.split()[1]) * 1024
