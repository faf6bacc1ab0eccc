"""Which failure an exception is. Reads no torch: its exceptions are known by name and words."""

import errno

from shared.shards import ShardError
from shared.tensorfiles import TensorFileError
from shared.training.assignment import BadInput
from worker.trainer.events import FailureCode

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MISSING = {errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR}
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "Could not allocate memory",
    "Cannot allocate memory",
    "out of memory",
    "std::bad_alloc",
    "STATUS_ALLOC_FAILED",
)
"""What torch's allocators, the C++ library, MPS and cuBLAS say, each in a RuntimeError, and the
loader of libraries, in an ImportError: some are loaded when they are used first."""


def classify(error: BaseException) -> FailureCode:
    """Which failure an exception is; what nothing else explains is the trainer's own."""
    if is_out_of_memory(error):
        return "out_of_memory"
    if isinstance(error, BadInput | ShardError | TensorFileError):
        return "bad_input"
    if isinstance(error, OSError):
        if error.errno in _FULL:
            return "disk_full"
        return "bad_input" if error.errno in _MISSING else "trainer_failed"
    return "diverged" if type(error).__name__ == "Diverged" else "trainer_failed"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, the host's or the device's, could not be had."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    told = isinstance(error, RuntimeError | ImportError)
    return told and any(words in str(error) for words in _NO_MEMORY)
