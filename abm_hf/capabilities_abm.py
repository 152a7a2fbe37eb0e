"""What the processor computes fast."""

import torch


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are done by the processor itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _has("avx512_bf16", "amx_bf16", "bf16")


def multiplies_bytes(device: torch.device) -> bool:
    """Whether convolutions of bytes are there and exact: on x86 with VNNI. Without it, their sums would saturate."""
    if device.type != "cpu" or not hasattr(torch.ops.onednn, "qconv_pointwise"):
        return False
    return _has("avx512_vnni", "avx_vnni")


def _has(*names: str) -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in names)


__all__ = ["computes_in_bfloat16", "multiplies_bytes"]
