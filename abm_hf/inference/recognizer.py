"""Recognition with PyTorch: on GPUs, and where there is no ONNX export."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..image_loading_abm import ImageInputError
from ..modeling_abm import ABMForConditionalGeneration
from ..pretrained import checkpoint_path
from ..processing_abm import ABMProcessor
from ..torch_engine_abm import TorchEngine
from .base import BaseRecognizer


class Recognizer(BaseRecognizer):
    """A model, its processor and a device, loaded once.

    Args:
        model: a directory, a Hub id, or the name of a packaged checkpoint; the packaged default if `None`.
        device: such as `"cpu"` or `"cuda:0"`; a GPU if there is one, by default.

    Raises:
        CheckpointError: if there is no such checkpoint.
        OSError, ValueError: if it cannot be loaded.
    """

    def __init__(self, model: str | Path | None = None, device: str | torch.device | None = None):
        self.path = checkpoint_path(model)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.processor = ABMProcessor.from_pretrained(self.path)
        self.model = ABMForConditionalGeneration.from_pretrained(self.path, dtype=torch.float32).to(self.device).eval()
        self.engine = TorchEngine(self.model, self.processor.tokenizer)
        self.feature_stride = self.model.config.feature_stride
        self.pad_to_multiple_of = self.processor.image_processor.pad_to_multiple_of

    def normalize(self, image: Any) -> np.ndarray:
        processed = self.processor.image_processor(image, do_pad=False, do_rescale=False, return_tensors="np")
        images = processed["pixel_values"]
        if len(images) != 1:
            raise ImageInputError(f"{len(images)} images in the place of one")
        return images[0][0].astype(np.uint8)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy(force=True).tobytes())
        return digest.hexdigest()[:16]

    def limit_megapixels(self, limit: float) -> None:
        """Refuse images of more megapixels, whatever the processor's own limit is."""
        self.processor.image_processor.max_megapixels = limit
