"""Weights of 8 bits in ONNX files: a quarter of the size.

The decoder's products run in integers (dynamic quantisation: the scale of an activation is found as it comes).
Convolutions and tables of tokens only store their weights in 8 bits, with a scale for each output channel or token,
and run in floats: see `docs/export.md` for what integer convolutions cost.
"""

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

# By operation, the input that is stored in 8 bits.
_STORED = {"Conv": 1, "Gather": 0}


def quantize_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with weights of 8 bits, one scale for each output channel. `model` is used up."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises, on the root logger, what the exporter has done already
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            quantize_dynamic(
                model, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
            )
            quantized = onnx.load(path)
    finally:
        logger.setLevel(level)
    _store_in_8_bits(quantized.graph)
    return quantized


def _store_in_8_bits(graph: onnx.GraphProto) -> None:
    """Replaces weights by integers and a node that turns them back, which onnxruntime does once, on loading."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    wanted = {node.input[_STORED[node.op_type]] for node in graph.node if node.op_type in _STORED}
    for name in sorted(wanted & set(weights)):
        if weights[name].data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(weights[name])
        greatest = np.abs(values).max(axis=tuple(range(1, values.ndim)))
        scales = (np.where(greatest > 0, greatest, 1) / 127).astype(np.float32)
        whole = np.rint(values / scales.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
        graph.initializer.remove(weights[name])
        stored = f"{name}_int8", f"{name}_scale"
        graph.initializer.append(numpy_helper.from_array(whole, stored[0]))
        graph.initializer.append(numpy_helper.from_array(scales, stored[1]))
        graph.node.insert(0, helper.make_node("DequantizeLinear", stored, [name], name=f"{name}_floats", axis=0))
