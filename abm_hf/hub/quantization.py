"""Smaller and faster ONNX files, by onnxruntime's own quantizer.

The encoder runs in 8-bit integers (static quantization, QDQ: a scale for each output channel of a weight, one range
for each activation, measured on drawn expressions). The decoder's steps run in float32; their weights are stored in
float16, which is the precision of the checkpoint, and widened once, on loading.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from ..inference.base import pad_images
from ..ink.rendering import render_ink
from ..synthetic.expressions import synthetic_ink

# What stands between two convolutions, too: else integers would become floats and integers again at each of them. The
# multiplication by the mask is left out: rounding once more there costs accuracy.
_QUANTIZED_OPERATIONS = ["Conv", "Relu", "Concat", "MaxPool", "AveragePool"]
_CALIBRATION_EXPRESSIONS = 64


def quantize_encoder(model: onnx.ModelProto, multiple: tuple[int, int]) -> onnx.ModelProto:
    """The encoder in 8-bit integers.

    Weights keep to 7 bits: on processors without VNNI instructions, sums of larger products would overflow.

    Args:
        model: the encoder in float32.
        multiple: pixels of which height and width are multiples.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, prepared, target = (Path(folder) / f"{name}.onnx" for name in ("source", "prepared", "target"))
        onnx.save(model, source)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            _DrawnExpressions(multiple),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_QUANTIZED_OPERATIONS,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(target)


def store_in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its larger constants stored in float16 and cast to float32 once, on loading."""
    graph = model.graph
    for tensor in [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]:
        values = numpy_helper.to_array(tensor)
        if values.size < 1024 or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        stored = f"{tensor.name}_float16"
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), stored))
        graph.node.insert(0, helper.make_node("Cast", [stored], [tensor.name], name=stored, to=TensorProto.FLOAT))
    return model


class _DrawnExpressions(CalibrationDataReader):
    """Inputs of the encoder, one image at a time, for the ranges of its activations."""

    def __init__(self, multiple: tuple[int, int]):
        self._inputs = self._draw(multiple)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._inputs, None)

    @staticmethod
    def _draw(multiple: tuple[int, int]) -> Iterator[dict[str, np.ndarray]]:
        for seed in range(_CALIBRATION_EXPRESSIONS):
            values, mask = pad_images([render_ink(synthetic_ink(seed, max_tokens=30))], multiple)
            yield {"pixel_values": values, "pixel_mask": mask}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizer's advice, which it gives on the root logger."""
    logger: Any = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
