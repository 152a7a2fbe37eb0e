"""PyTorch as an engine of `decoding_abm`: on GPUs, and where there is no ONNX export."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .decoding_abm import DecodingOptions, Hypothesis, decode
from .modeling_abm import ABMDecoderBranch, ABMEncoderOutput, ABMForConditionalGeneration


class TorchState:
    """A branch over B images with K hypotheses each, see `search_abm.SearchState`."""

    def __init__(self, branch: ABMDecoderBranch, encoder_outputs: ABMEncoderOutput):
        self.branch = branch
        self.cache = branch.start(encoder_outputs, len(encoder_outputs.last_hidden_state))

    def __len__(self) -> int:
        return len(self.cache.memory.keys)

    def select(self, parents: np.ndarray) -> None:
        hypotheses = len(self.cache.hidden) // len(self)
        if parents.shape[1] == hypotheses == 1:
            return
        rows = torch.from_numpy(np.arange(len(parents))[:, None] * hypotheses + parents)
        self.cache.reorder_cache(rows.flatten().to(self.cache.hidden.device))

    def keep(self, images: np.ndarray) -> None:
        self.cache.select_images(torch.from_numpy(images).to(self.cache.hidden.device))

    @torch.inference_mode()
    def step(self, tokens: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(np.ascontiguousarray(tokens)).view(-1, 1).to(self.cache.hidden.device)
        logits, _ = self.branch(ids, self.cache)
        return logits[:, 0].float().log_softmax(-1).view(*tokens.shape, -1).numpy(force=True)

    @property
    def coverage(self) -> np.ndarray:
        return self.cache.coverage.unflatten(0, (len(self), -1)).numpy(force=True)


class TorchEngine:
    """Runs a model with PyTorch, see [`Engine`].

    Args:
        model ([`ABMForConditionalGeneration`]): in evaluation mode.
        tokenizer ([`ABMTokenizer`]): of the model.
    """

    def __init__(self, model: ABMForConditionalGeneration, tokenizer: Any):
        self.model = model
        self.tokenizer = tokenizer

    @property
    def directions(self) -> Sequence[str]:
        return self.model.config.directions

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.model.generation_config.to_diff_dict()

    @property
    def feature_stride(self) -> int:
        return self.model.config.feature_stride

    @torch.inference_mode()
    def encode(self, pixel_values: np.ndarray, pixel_mask: np.ndarray) -> ABMEncoderOutput:
        values = torch.as_tensor(pixel_values).to(self.model.device, self.model.dtype)
        return self.model.encoder(values, torch.as_tensor(pixel_mask).to(self.model.device))

    @torch.inference_mode()
    def start(self, encoded: ABMEncoderOutput, direction: str) -> TorchState:
        return TorchState(self.model.branch(direction), encoded)


def recognize_images(
    model: ABMForConditionalGeneration,
    tokenizer: Any,
    pixel_values: Tensor,
    pixel_mask: Tensor | None = None,
    options: DecodingOptions | None = None,
) -> list[list[Hypothesis]]:
    """From what the processor makes of B images to the hypotheses of each.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 1, height, width)`), pixel_mask (`torch.Tensor` of
            shape `(batch_size, height, width)`, *optional*): as the processor makes them.

    Raises:
        ValueError: for options that contradict the model.
    """
    values = pixel_values.numpy(force=True)
    mask = np.ones((len(values), *values.shape[2:]), bool) if pixel_mask is None else pixel_mask.numpy(force=True) != 0
    return decode(TorchEngine(model, tokenizer), values, mask, options)


__all__ = ["TorchEngine", "TorchState", "recognize_images"]
