"""Weights that are read without their layer's `forward`, with what adapters of peft make of them."""

from typing import Any, cast

from torch import Tensor, nn


def adapted_weight(layer: nn.Module) -> Tensor:
    """The weight that `layer` would compute with.

    The decoder composes and packs weights instead of calling their layers one by one, so an adapter around a layer
    would be passed over. Here the product of a LoRA adapter is added where it has not been merged; its dropout is not
    applied.

    Args:
        layer: `nn.Linear` or `nn.Conv2d`, or such a layer with LoRA adapters of peft.

    Raises:
        ValueError: for another layer in its place, whose effect on the weight is not known.
    """
    if isinstance(layer, nn.Linear | nn.Conv2d):
        return layer.weight
    adapter = cast(Any, layer)
    if not hasattr(adapter, "lora_A") or any(getattr(adapter, "use_dora", {}).values()):
        raise ValueError(
            f"{type(layer).__name__} cannot stand for a linear layer of the decoder: use plain LoRA there, or adapt "
            "the encoder's convolutions and `classifier` only"
        )
    weight = adapter.weight
    if adapter.merged or adapter.disable_adapters:
        return weight
    for name in adapter.active_adapters:
        if name in adapter.lora_A:
            weight = weight + adapter.get_delta_weight(name)
    return weight


__all__ = ["adapted_weight"]
