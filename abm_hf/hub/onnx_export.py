"""A checkpoint as ONNX files: the encoder, and one step of each decoder branch, in its folder `onnx`.

[`ABMOnnxModel`] runs them, without torch. Shapes: B images of H × W pixels, K hypotheses of each, h × w = L feature
positions of C channels, V output tokens, attention size D; the state of a hypothesis has S numbers.

`encoder.onnx`: `pixel_values` (B, 1, H, W), ink bright on dark in [0, 1], and `pixel_mask` (B, H, W), both sides
multiples of `feature_stride`; to `values` (B, L, C), `mask` (B, h, w), and for each direction `keys_…` (B, D, L) and
`hidden_…` (B, S).

`step_l2r.onnx`, `step_r2l.onnx`: `tokens` (B, K), `hidden` (B, K, S), `coverage` (B, K, h, w) and the images' `keys`,
`values` and `mask`; to `log_probs` (B, K, V) of the next token, `next_hidden` and `next_coverage`.
"""

import copy
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..inference.onnx_files import ENCODER_FILE, ONNX_FOLDER, step_file, write_export_file
from ..modeling_abm import ABMDecoderBranch, ABMForConditionalGeneration, update_gru
from ..pretrained import CheckpointError, checkpoint_path
from ..processing_abm import ABMProcessor
from .quantization import quantize_encoder, store_in_half

_LARGEST = 4096  # of each dynamic size; a bound that the exporter wants, not one that the files have


def export_onnx(
    model: str | Path | None, folder: str | Path | None = None, encoder: Literal["int8", "float32"] = "int8"
) -> Path:
    """Writes a checkpoint as ONNX files, into the folder `onnx` beside its weights or in another place.

    Args:
        model: a directory, Hub id or packaged checkpoint; the packaged default if `None`.
        folder: the checkpoint's own by default. Another one is made where it does not exist, and gets the settings of
            model, processor and tokenizer as well, so that it can be used without the weights.
        encoder: `"int8"`, three to four times as fast where the processor multiplies integers, or `"float32"`.

    Returns:
        `folder`, or the checkpoint's own.

    Raises:
        CheckpointError: if there is no such checkpoint, or `folder` is left out for a Hub id.
        ImportError: if onnx or onnxscript is missing.
        OSError: if the folder cannot be written.
    """
    path = checkpoint_path(model)
    if folder is None and not Path(path).is_dir():
        raise CheckpointError(f"{path} is on the Hub: name a folder for its ONNX files")
    folder = Path(path if folder is None else folder)
    folder.mkdir(parents=True, exist_ok=True)
    network = ABMForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    processor = ABMProcessor.from_pretrained(path)
    if not any(folder.glob("*.safetensors")):
        network.config.save_pretrained(folder)
        network.generation_config.save_pretrained(folder)
        processor.save_pretrained(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".onnx-") as temporary:
        made, target = Path(temporary) / ONNX_FOLDER, folder / ONNX_FOLDER
        made.mkdir()
        _write_files(network, processor.image_processor.pad_to_multiple_of, made, encoder)
        write_export_file(folder, made, encoder)
        if target.exists():
            target.rename(Path(temporary) / "replaced")
        made.rename(target)
    return folder


def _write_files(
    network: ABMForConditionalGeneration, multiple: tuple[int, int], folder: Path, encoder: Literal["int8", "float32"]
) -> None:
    graph = _export_encoder(network).model_proto
    graph = quantize_encoder(graph, _padding(network, multiple)) if encoder == "int8" else graph
    _save(graph, folder / ENCODER_FILE)
    for direction in network.config.directions:
        _save(store_in_half(_export_step(network, direction).model_proto), folder / step_file(direction))


def _padding(network: ABMForConditionalGeneration, multiple: tuple[int, int]) -> tuple[int, int]:
    """The processor's multiples of height and width, made multiples of the features' stride as well."""
    rows, columns = (math.lcm(side, network.config.feature_stride) for side in multiple)
    return rows, columns


def _save(graph: onnx.ModelProto, path: Path) -> None:
    _strip(graph)
    onnx.save(graph, path)


def _strip(model: onnx.ModelProto) -> None:
    """Takes away what only debuggers read: where each node comes from, paths on this machine included."""
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


class ExportableEncoder(nn.Module):
    """The encoder, and what each branch computes of a picture before its first token."""

    def __init__(self, network: ABMForConditionalGeneration):
        super().__init__()
        self.encoder = copy.deepcopy(network.encoder)
        _fold_batch_norms(self.encoder)
        self.branches = network.branches

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, ...]:
        encoded = self.encoder(pixel_values, pixel_mask)
        values, mask = encoded.last_hidden_state, encoded.encoder_mask
        weights = mask.flatten(1).to(values.dtype)  # (B, L)
        mean = (weights[:, None] @ values).squeeze(1) / weights.sum(1, keepdim=True)  # (B, C)
        outputs = [values, mask]
        for branch in self.branches.values():
            assert isinstance(branch, ABMDecoderBranch)
            keys = branch.attention.fused_keys(values)
            outputs += [keys.transpose(1, 2).contiguous(), branch.initial_state(mean).tanh()]
        return tuple(outputs)


class ExportableStep(nn.Module):
    """One step of a branch, its equations written out for single tokens: see `recurrence_abm` and `ABMAttention`.

    What depends on the token alone is a table: its embedding has been through the layers that follow.
    """

    def __init__(self, branch: ABMDecoderBranch):
        super().__init__()
        attention, embedding = branch.attention, branch.embedding.weight
        self.token_gates = nn.Embedding.from_pretrained(branch.token_gru.input(embedding))
        self.token_output = nn.Embedding.from_pretrained(branch.output_embedding(embedding))
        self.token_recurrent = branch.token_gru.recurrent
        self.context_input = branch.context_gru.input
        self.context_recurrent = branch.context_gru.recurrent
        self.query = attention.query
        self.energy = attention.energy
        self.margin = max(attention.coverage_kernels) // 2
        size = 2 * self.margin + 1
        self.kernel = nn.Parameter(attention.fused_kernel().T.reshape(-1, 1, size, size))  # (D, 1, k, k)
        self.output_context = branch.output_context
        self.output_hidden = branch.output_hidden
        self.classifier = branch.classifier

    def forward(
        self, tokens: Tensor, hidden: Tensor, coverage: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        between = update_gru(self.token_gates(tokens), self.token_recurrent(hidden), hidden)  # (B, K, S)
        around = F.conv2d(coverage.flatten(0, 1)[:, None], self.kernel, padding=self.margin)  # (B · K, D, h, w)
        around = around.flatten(2).unflatten(0, coverage.shape[:2])  # (B, K, D, L)
        activation = (around + keys[:, None] + self.query(between)[..., None]).tanh()
        energies = (self.energy.weight @ activation).squeeze(2)  # (B, K, L)
        attention = energies.masked_fill(~mask.flatten(1)[:, None], float("-inf")).softmax(-1)
        context = attention @ values  # (B, K, C)
        new = update_gru(self.context_input(context), self.context_recurrent(between), between)
        mixed = self.output_context(context) + self.output_hidden(new) + self.token_output(tokens)
        maxout = mixed.unflatten(-1, (-1, 2)).amax(-1)  # (B, K, E / 2)
        log_probs = self.classifier(maxout).log_softmax(-1)
        return log_probs, new, coverage + attention.view_as(coverage)


def _fold_batch_norms(encoder: nn.Module) -> None:
    """Makes each batch norm a part of the convolution before it."""
    for module in encoder.modules():
        for conv, norm in (("conv", "norm"), ("conv1", "norm1"), ("conv2", "norm2")):
            if isinstance(getattr(module, norm, None), nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())


def _export_encoder(network: ABMForConditionalGeneration) -> Any:
    stride = network.config.feature_stride
    sides = {"h": stride * torch.export.Dim("h", max=_LARGEST), "w": stride * torch.export.Dim("w", max=_LARGEST)}
    batch = torch.export.Dim("B", max=_LARGEST)
    names = [name for direction in network.config.directions for name in (f"keys_{direction}", f"hidden_{direction}")]
    return _export(
        ExportableEncoder(network),
        {
            "pixel_values": torch.rand(2, network.config.num_channels, 3 * stride, 4 * stride),
            "pixel_mask": torch.ones(2, 3 * stride, 4 * stride, dtype=torch.bool),
        },
        ["values", "mask", *names],
        {
            "pixel_values": {0: batch, 2: sides["h"], 3: sides["w"]},
            "pixel_mask": {0: batch, 1: sides["h"], 2: sides["w"]},
        },
    )


def _export_step(network: ABMForConditionalGeneration, direction: str) -> Any:
    config = network.config
    batch, beams, rows, columns = (torch.export.Dim(name, max=_LARGEST) for name in ("B", "K", "h", "w"))
    positions = torch.export.Dim("L", max=_LARGEST)
    return _export(
        ExportableStep(network.branch(direction)),
        {
            "tokens": torch.zeros(2, 3, dtype=torch.long),
            "hidden": torch.rand(2, 3, config.hidden_size),
            "coverage": torch.rand(2, 3, 4, 5),
            "keys": torch.rand(2, config.attention_size, 20),
            "values": torch.rand(2, 20, config.feature_channels),
            "mask": torch.ones(2, 4, 5, dtype=torch.bool),
        },
        ["log_probs", "next_hidden", "next_coverage"],
        {
            "tokens": {0: batch, 1: beams},
            "hidden": {0: batch, 1: beams},
            "coverage": {0: batch, 1: beams, 2: rows, 3: columns},
            "keys": {0: batch, 2: positions},
            "values": {0: batch, 1: positions},
            "mask": {0: batch, 1: rows, 2: columns},
        },
    )


def _export(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], sizes: Mapping[str, Any]) -> Any:
    with torch.no_grad(), _silence():
        return torch.onnx.export(
            module.eval(),
            kwargs=dict(inputs),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dict(sizes),
            dynamo=True,
            verbose=False,
        )


@contextmanager
def _silence() -> Iterator[None]:
    """Without what the exporter says about itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
