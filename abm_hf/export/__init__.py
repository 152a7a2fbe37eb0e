"""A checkpoint in other forms: ONNX, with weights of 32 or 8 bits."""
