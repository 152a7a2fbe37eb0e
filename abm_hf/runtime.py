"""What decoding needs of the process and the processor that it runs on."""

import ctypes
import os
import sys
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]

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


def encoder_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """What to give to `ABMForConditionalGeneration.fuse`: `"auto"` is bfloat16 where the processor computes in it.

    Raises:
        ValueError: for an unknown precision.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"unknown precision {precision!r}: choose 'auto', 'float32' or 'bfloat16'")
    if precision == "auto":
        precision = "bfloat16" if _computes_in_bfloat16(device) else "float32"
    return torch.bfloat16 if precision == "bfloat16" else None


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
