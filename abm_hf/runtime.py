"""What programs need of the process and the processor that they run on."""

import ctypes
import os
import sys

import torch

# glibc's numbers, see mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_THRESHOLD = 32 * 1024 * 1024

# oneDNN compiles each convolution for each size of picture and by default remembers 1,024, those of some
# twenty sizes. They take some 60 KB each.
_PRIMITIVES = "10000"


def tune_process() -> None:
    """Settings under which decoding is faster; for programs, not for libraries, as they concern the whole process.

    oneDNN keeps what it has compiled for all sizes of pictures, unless `ONEDNN_PRIMITIVE_CACHE_CAPACITY` says
    otherwise; this must come before the first convolution. On Linux, glibc keeps memory that was freed for the next
    step instead of giving it back to the system, page by page.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _PRIMITIVES)
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
            mallopt(_M_TRIM_THRESHOLD, 8 * _LARGEST_THRESHOLD)


def leave_group() -> None:
    """Ends this program's part in the group of processes that it was started in, if there is one.

    To be called by all of them, before they end: one that just does may take the others with it.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
