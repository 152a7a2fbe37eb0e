"""Ways out of this package: a checkpoint for the Hub with its card, an ONNX export, the demo as a Space."""

from .publish import push_to_hub, save_pretrained

__all__ = ["push_to_hub", "save_pretrained"]
